"""What a task that writes text answers with, as far as other protocols than our own tell it."""

from __future__ import annotations

from typing import Literal

import msgspec

from mlos.core.dataplane import Inference
from mlos.errors import WorkerError

WRITING = ("text-generation", "text2text-generation")
"""The tasks that go on with a text or answer it, by preference."""


class Written(msgspec.Struct, frozen=True):
    """A text, and why it ended."""

    text: str
    finish_reason: Literal["stop", "length"]


def written(inference: Inference) -> Written:
    """The text that was written.

    Raises:
        WorkerError: if the model's worker answered something else.
    """
    try:
        return msgspec.json.decode(inference.result, type=Written)
    except msgspec.DecodeError as error:
        raise WorkerError(f"the worker of {inference.model} answered nonsense: {error}") from error
