"""The V1 inference request: what a person has, or named tensors."""

from __future__ import annotations

from typing import Any

import msgspec


class InferenceRequest(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    """One request as it crosses from the front to a worker, and as it stands in a golden record.

    Exactly one of ``text``, ``texts`` and ``inputs`` is given; the task checks that: it knows what it takes.
    """

    text: str | None = None
    """One text."""
    texts: list[str] | None = None
    """Several texts, answered in order."""
    inputs: dict[str, Any] | None = None
    """Tensor name to nested list (from JSON) or to an array (between our own processes)."""
    outputs: list[str] | None = None
    """With ``inputs``: which output tensors to answer with; all of them if absent."""
    task: str | None = None
    """Which task, where the model has several."""
    parameters: dict[str, Any] = {}
    """Options of the task, for example ``top_k``."""
