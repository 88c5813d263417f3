"""Weights of an ONNX model in files beside it.

Format: https://github.com/onnx/onnx/blob/main/docs/ExternalData.md.

Weights beside the graph are the format's dangerous part: every tensor anywhere in the model (subgraphs,
functions, attributes, training graphs) that has them must name a plain relative path to a regular file in the
model's folder or below, reached through no link and with no second name (hard link), and a range inside it that
is exactly the tensor's size. Two tensors share a range whole or not at all. That rule is for files as they
arrive: a store may hard-link what has passed, so verify before storing.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from mlos.errors import RefusedError
from mlos.formats.source import Source, quoted, shown
from mlos.model.manifest import normal_path

_DECIMAL = re.compile(r"[0-9]{1,19}")
_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}
_MEMORY_MARKER = "_ORT_MEM_ADDR_"
"""A location with this mark makes ONNX Runtime take the offset for an address in memory."""


@dataclass(frozen=True)
class _Range:
    tensor: str
    start: int
    end: int


class ExternalData:
    """The ranges that the tensors of one model claim in its external files."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._ranges: dict[str, list[_Range]] = {}

    def add(self, name: str, pairs: list[tuple[str, str]], wanted: int) -> None:
        """Take up one tensor's ``external_data`` pairs; ``wanted`` is its size in bytes.

        Raises:
            CorruptError: if they are not well-formed, or of another size.
            RefusedError: if they point anywhere but to a file in the model's folder.
        """
        what = f"tensor {quoted(name)}"
        entries = unique_pairs(self.source, "external_data", pairs)
        unknown = set(entries) - _EXTERNAL_KEYS
        location = str(entries.get("location", ""))
        if unknown:
            raise self.source.refused(
                f"{what} describes its external data in unknown words",
                ", ".join(sorted(_EXTERNAL_KEYS)),
                quoted(min(unknown)),
                "save the model again with onnx.save_model",
            )
        if not normal_path(location) or _MEMORY_MARKER in location:
            raise self._unsafe(what, quoted(location) if location else "no location")
        numbers = {}
        for key in ("offset", "length"):
            text = str(entries.get(key, "")) or None
            if text is not None and not _DECIMAL.fullmatch(text):
                raise self.source.corrupt(
                    f"{what} has a wrong external {key}", "a decimal number", quoted(text)
                )
            numbers[key] = int(text) if text is not None else None
        start, length = numbers["offset"] or 0, numbers["length"]
        if length is not None and length != wanted:
            raise self.source.corrupt(
                f"{what} has the wrong size", f"{wanted} bytes", f"{length} bytes in {quoted(location)}"
            )
        self._ranges.setdefault(location, []).append(_Range(name, start, start + wanted))

    def check(self) -> tuple[str, ...]:
        """Check every file of external data and the ranges in it; their locations."""
        for location, ranges in self._ranges.items():
            size = self._file_size(location, f"tensor {quoted(ranges[0].tensor)}")
            covered, before = 0, _Range("", 0, 0)
            for part in sorted(ranges, key=lambda part: (part.start, part.end)):
                if part.end > size:
                    raise self.source.corrupt(
                        f"tensor {quoted(part.tensor)} lies past the end of {quoted(location)}",
                        f"at most {size} bytes",
                        f"{part.end - part.start} bytes at offset {part.start}",
                    )
                if part.start == part.end or (part.start, part.end) == (before.start, before.end):
                    continue
                if part.start < covered:
                    raise self.source.corrupt(
                        f"tensors {quoted(before.tensor)}, {quoted(part.tensor)} overlap in {quoted(location)}",
                        f"data from byte {covered}",
                        f"byte {part.start}",
                    )
                covered, before = part.end, part
        return tuple(sorted(self._ranges))

    def _file_size(self, location: str, what: str) -> int:
        """The size of a file of external data, which no link may stand in the way of."""
        folder = self.source.path.parent
        segments = location.split("/")
        try:
            for depth in range(1, len(segments)):
                if not stat.S_ISDIR(os.lstat(folder.joinpath(*segments[:depth])).st_mode):
                    raise self._unsafe(what, f"a link or file on the way to {quoted(location)}")
            status = os.lstat(folder.joinpath(*segments))
        except (OSError, ValueError) as error:
            raise self.source.corrupt(
                f"{what} has its data in a file that cannot be found",
                f"a file {quoted(location)} beside the model",
                "none" if isinstance(error, FileNotFoundError) else shown(str(error)),
                "put the model's external data files next to it",
            ) from error
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
            raise self._unsafe(what, f"{quoted(location)}, {kind}")
        if status.st_nlink != 1:
            raise self._unsafe(what, f"{quoted(location)}, a file with {status.st_nlink} names (hard links)")
        return status.st_size

    def _unsafe(self, what: str, got: str) -> RefusedError:
        return self.source.refused(
            f"{what} has its data outside the model's folder or behind a link",
            "a plain file in the model's folder",
            got,
            "copy the data beside the model, save again with onnx.save_model(save_as_external_data=True)",
        )


def unique_pairs(source: Source, field: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``pairs`` as a dictionary.

    Raises:
        CorruptError: if a key stands twice: parsers differ in which they take.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise source.corrupt(
            f"{field} names something twice", "each key once", f"{len(pairs) - len(found)} more"
        )
    return found
