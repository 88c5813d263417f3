"""SafeTensors: eight bytes of header length, a JSON header, then the tensors, end to end.

Format: https://github.com/huggingface/safetensors#format. Its rules are enforced here without the library: the
header is at most 100 MB, starts with ``{`` and is padded with spaces only, no key stands twice, and the tensors
cover the rest of the file with no hole and no overlap. Only the header is read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mlos.formats.source import INT64_MAX, Source, elements, quoted, shown
from mlos.formats.summary import Summary

MAX_HEADER = 100_000_000
"""Bytes, the format's own limit."""
MAX_TENSORS = 250_000
"""The largest published models have some hundred thousand, over all their shards."""
_MAX_COMMAS = 16 * MAX_TENSORS
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits per element of each element type, after ``Dtype::bitsize`` of the library (0.8)."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a header; ``start`` and ``end`` are bytes from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    elements: int


@dataclass(frozen=True)
class Header:
    """A verified header: its tensors by name, and the free text pairs of ``__metadata__``."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def summary(self) -> Summary:
        """The header in the words common to all formats."""
        types: dict[str, int] = {}
        for tensor in self.tensors.values():
            types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.elements
        return Summary(
            "safetensors", len(self.tensors), sum(types.values()), dict(self.metadata), element_types=types
        )


def detect(source: Source) -> bool:
    """Whether the file starts as SafeTensors do: a length that could be a header's, then ``{``."""
    head = source.head(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER


def verify(path: Path, name: str | None = None) -> Summary:
    """Check a SafeTensors file against the whole of its format; see the module's description.

    Raises:
        CorruptError: if it breaks a rule of the format.
        RefusedError: if it is larger than a limit.
    """
    return read(path, name).summary()


def read(path: Path, name: str | None = None) -> Header:
    """The header of a SafeTensors file, verified as :func:`verify` does."""
    with Source(path, name) as source:
        pairs, data = _parse(source)
        size = source.size - data
        metadata: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        for key, value in pairs.items():
            if key == "__metadata__":
                metadata = _metadata(source, value)
            else:
                tensors[key] = _tensor(source, key, value)
        if len(tensors) > MAX_TENSORS:
            raise _too_many(source, f"{len(tensors)} tensors")
        covered = 0
        for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if tensor.start != covered:
                problem = "overlaps the one before it" if tensor.start < covered else "leaves a hole before it"
                raise source.corrupt(
                    f"tensor {quoted(key)} {problem}", f"data from byte {covered}", f"byte {tensor.start}"
                )
            covered = tensor.end
        if covered != size:
            problem = "the tensors reach past the end" if covered > size else "bytes after the last tensor"
            raise source.corrupt(problem, f"{covered} bytes of tensor data", f"{size} bytes")
        return Header(tensors, metadata)


def _parse(source: Source) -> tuple[dict[str, Any], int]:
    if source.size < 8:
        raise source.corrupt("it is too short", "8 bytes of header length", f"{source.size} bytes")
    length = int.from_bytes(source.read(0, 8, "the header length"), "little")
    if length > source.size - 8:
        raise source.corrupt(
            "the header points past the end of the file", f"at most {source.size - 8} bytes", f"{length} bytes"
        )
    if length > MAX_HEADER:
        raise source.refused(
            "the header is too large",
            f"at most {MAX_HEADER} bytes",
            f"{length} bytes",
            "split the model into shards",
        )
    header = source.read(8, length, "the header")
    source.window = b""
    if not header.startswith(b"{") or not header.rstrip(b" ").endswith(b"}"):
        raise source.corrupt("the header is not one JSON object padded with spaces", "{…}", _edges(header))
    # Counted before anything is built, so that no header makes a hundred times its own size in objects.
    if (
        header.count(b"{") > 2 * MAX_TENSORS
        or header.count(b"[") > 3 * MAX_TENSORS
        or header.count(b",") > _MAX_COMMAS
    ):
        raise _too_many(source, "a header of more parts than that")
    try:
        pairs = json.loads(
            header.decode(),
            object_pairs_hook=_unique,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise source.corrupt("the header is nested too deep", "two levels", "hundreds") from error
    except ValueError as error:
        raise source.corrupt(
            "the header is not strict JSON", "an object of tensors", shown(str(error))
        ) from error
    return pairs, 8 + length


def _tensor(source: Source, name: str, entry: Any) -> Tensor:
    what = f"tensor {quoted(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        keys = ", ".join(sorted(entry)) if isinstance(entry, dict) else type(entry).__name__
        raise source.corrupt(
            f"{what} is described wrongly", "dtype, shape and data_offsets", shown(keys) or "nothing"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise source.refused(
            f"{what} has an unknown element type",
            "one of " + ", ".join(BITS),
            quoted(str(dtype)),
            "convert it to a type in the list",
        )
    if not _naturals(shape):
        raise source.corrupt(f"{what} has no valid shape", "natural numbers", quoted(str(shape)))
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise source.corrupt(f"{what} has no valid data_offsets", "[begin, end]", quoted(str(offsets)))
    count = elements(tuple(shape))
    if count is None or count * BITS[dtype] > INT64_MAX:
        raise source.corrupt(f"{what} overflows", "a size below 2^63", f"shape {shown(str(shape))}")
    bits = count * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise source.corrupt(
            f"{what} has the wrong size",
            f"{bits / 8:g} bytes for {dtype} {shown(str(shape))}",
            f"{offsets[1] - offsets[0]} bytes",
        )
    return Tensor(dtype, tuple(shape), offsets[0], offsets[1], count)


def _metadata(source: Source, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise source.corrupt("__metadata__ is wrong", "an object of texts", quoted(str(value)[:200]))
    return value


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= INT64_MAX for item in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} stands twice")
        key.encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
        found[key] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:40]}")


def _edges(header: bytes) -> str:
    return quoted((header[:12] + b"..." + header[-8:]).decode("latin-1")) if header else "nothing"


def _too_many(source: Source, got: str) -> Exception:
    return source.refused(
        "it holds too much", f"at most {MAX_TENSORS} tensors", got, "split the model into shards"
    )
