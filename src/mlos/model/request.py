"""The V1 inference request: what a person has, or named tensors."""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One turn of a conversation. Which roles there are is the model's own template's to say."""

    role: str
    content: str


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """One request as it crosses from the front to a worker, and as it stands in a golden record.

    Exactly one of ``text``, ``texts``, ``prompt``, ``messages``, ``image``, ``images``, ``audio``, ``audios``
    and ``inputs`` is given, but that images may come with ``texts``, the labels to choose among; the task
    checks that: it knows what it takes.
    """

    text: str | None = None
    """One text."""
    texts: list[str] | None = None
    """Several texts, answered in order; beside images, the labels to choose among."""
    prompt: str | None = None
    """A text to be continued."""
    messages: list[Message] | None = None
    """A conversation whose next turn is asked for."""
    image: bytes | None = None
    """One image file, as it is; base64 in JSON."""
    images: list[bytes] | None = None
    """Several image files, answered in order."""
    audio: bytes | None = None
    """One sound file, as it is; base64 in JSON."""
    audios: list[bytes] | None = None
    """Several sound files, answered in order."""
    inputs: dict[str, Any] | None = None
    """Tensor name to nested list (from JSON) or to an array (between our own processes)."""
    outputs: list[str] | None = None
    """With ``inputs``: which output tensors to answer with; all of them if absent."""
    task: str | None = None
    """Which task, where the model has several."""
    stream: bool = False
    """Whether the answer is to come in parts, as they are made."""
    parameters: dict[str, Any] = {}
    """Options of the task, for example ``top_k``."""
