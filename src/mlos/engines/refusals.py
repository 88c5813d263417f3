"""What an engine's library says when it fails, as the error that it means: the same words for every engine."""

from __future__ import annotations

from mlos.errors import InvalidInputError, MlosError, NoRoomError, WorkerError

_LONGEST = 300


def one_line(text: str) -> str:
    """A library's message on one line, and not endless."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "…"


def refusal(library: str, reason: str, *, of_these_tensors: bool) -> MlosError:
    """The error for a run that ``library`` ended for ``reason``.

    ``of_these_tensors`` says that it refused what it was given, after our own checks: then it is a value or a
    length, such as a token number beyond the vocabulary or a text beyond the positions. Out of memory is
    never the tensors' fault.
    """
    if "allocat" in reason:
        return NoRoomError(f"the request needs more memory than there is: {reason}", hint="send less at a time")
    if of_these_tensors:
        return InvalidInputError(f"the model cannot take these tensors: {reason}", field="inputs")
    return WorkerError(f"{library} failed: {reason}")
