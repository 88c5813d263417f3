"""A file that is not trusted: bounded reads of it, and errors that name it.

Reads go through ``pread``, never through a mapping: a file that shrinks while it is read gives an error here
and not a fatal signal. Nothing is read that a verifier does not ask for, so tensor data stays on the disk.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from mlos.errors import CorruptError, NotFoundError, RefusedError

WINDOW = 1 << 14
"""Bytes kept of the place last read: enough for runs of small fields, few enough to hop over weights."""
INT64_MAX = (1 << 63) - 1
"""What native parsers count sizes in; a size past it would wrap in them."""
_AGAIN = "the file is damaged or incomplete: fetch it again, or have its author write it again"


class Source:
    """One open regular file of known size. ``name`` is what errors call it, by default its file name.

    Raises:
        NotFoundError: if there is no such file.
        RefusedError: if it is not a regular file (a folder, a pipe, a device) or cannot be opened.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = shown(name or path.name)
        self.window = b""
        self.start = 0
        """Offset in the file of the window's first byte."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._descriptor = os.open(path, flags)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.name}: no such file") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise RefusedError(f"{self.name} cannot be opened: {reason}") from error
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise self.refused("it is not a model file", "a regular file", kind, "name the model file itself")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all there are."""
        return self.read(0, min(count, self.size), "the first bytes")

    def read(self, offset: int, count: int, what: str) -> bytes:
        """``count`` bytes at ``offset``; ``what`` says in an error what they were to be.

        Raises:
            CorruptError: if they are not all inside the file.
        """
        if count > self.size - offset:
            raise self.past_end(what, offset, count)
        begin = offset - self.start
        if begin < 0 or begin + count > len(self.window):
            self.refill(offset, count)
            begin = 0
        return self.window[begin : begin + count]

    def refill(self, offset: int, count: int = 1) -> None:
        """Move the window to ``offset``, with at least ``count`` bytes in it.

        Raises:
            CorruptError: if the file has become shorter than it was when it was opened.
        """
        wanted = min(max(count, WINDOW), self.size - offset)
        parts: list[bytes] = []
        have = 0
        while have < wanted:
            part = os.pread(self._descriptor, wanted - have, offset + have)
            if not part:
                raise self.corrupt(
                    "it changed while it was read", f"{self.size} bytes", f"{offset + have} bytes"
                )
            parts.append(part)
            have += len(part)
        self.window = parts[0] if len(parts) == 1 else b"".join(parts)
        self.start = offset

    def past_end(self, what: str, offset: int, count: int) -> CorruptError:
        """The error for ``count`` bytes at ``offset`` that are not all there."""
        return self.corrupt(
            f"{what} lies past the end of the file",
            f"at most {self.size} bytes",
            f"{count} bytes at offset {offset}",
        )

    def corrupt(self, problem: str, expected: str, got: str, hint: str = _AGAIN) -> CorruptError:
        """The error for bytes that break the format's rules."""
        return CorruptError(
            f"{self.name}: {problem}: expected {expected}, got {got}", expected=expected, got=got, hint=hint
        )

    def refused(self, problem: str, expected: str, got: str, hint: str) -> RefusedError:
        """The error for a file that may be whole, and that is not taken."""
        return RefusedError(
            f"{self.name}: {problem}: expected {expected}, got {got}", expected=expected, got=got, hint=hint
        )


def shown(text: str, limit: int = 120) -> str:
    """``text`` on one line of bounded length, control characters and lone surrogates escaped."""
    short = text if len(text) <= limit else text[:limit] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in short)


def quoted(text: str) -> str:
    """``text`` for an error message, in quotes."""
    return f"'{shown(text)}'"


def elements(shape: tuple[int, ...]) -> int | None:
    """The product of a shape's axes; none if it does not fit in 64 bits.

    The product of the axes other than zero must fit too: native parsers multiply from left to right.
    """
    product = 1
    for axis in shape:
        product *= axis or 1
        if product > INT64_MAX:
            return None
    return 0 if 0 in shape else product
