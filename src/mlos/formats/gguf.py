"""GGUF: metadata and tensor descriptions in one run of binary fields, then aligned tensor data.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian; tensor
types after ``ggml.h`` and ``gguf-py/gguf/constants.py``. Every count is checked against the bytes that are left
before anything is done with it, and sizes are computed in integers that cannot wrap. Tensor data is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlos.formats.source import INT64_MAX, Source, elements, quoted, shown
from mlos.formats.summary import Summary

MAX_PAIRS = 65_536
MAX_TENSORS = 250_000
MAX_TEXT = 1 << 24
"""Bytes of one text: a chat template, a tokenizer's whole JSON."""
MAX_TEXTS = 1 << 27
"""Bytes of all texts together."""
MAX_VALUES = 4_000_000
"""Values and texts that are looked at one by one: seconds of work, and ten times the largest vocabulary."""
MAX_TOKENS = 1 << 20
"""Tokens of a vocabulary, each of which is compared with all others."""
MAX_KEY = 65_535
MAX_NAME = 64
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_SHOWN = 64
"""Longer arrays are summarised as ``{"array": TYPE, "length": COUNT}``."""
_ALIGNMENT = "general.alignment"
_TOKENS = "tokenizer.ggml.tokens"
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<B"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
}  # fmt: skip
_VALUE_TYPES = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "bool",
    "string", "array", "uint64", "int64", "float64",
)  # fmt: skip
_LENGTH = struct.Struct("<Q")

TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""Tensor type number to its name, elements per block and bytes per block (gguf 0.19)."""
FILE_TYPES: dict[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""``general.file_type`` to the name of the mixture of tensor types that it stands for (``llama.h``)."""
_REMOVED = {4, 5, 31, 32, 33, 36, 37, 38}
"""Numbers of types that ggml once had."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    start: int
    size: int


def detect(source: Source) -> bool:
    """Whether the file starts with GGUF's magic bytes."""
    return source.head(4) == b"GGUF"


def verify(path: Path, name: str | None = None, *, whole: Collection[str] = ()) -> Summary:
    """Check a GGUF file: its metadata, and that every tensor is inside the file, aligned and apart.

    One part of a split model is verified by itself; ``split.count`` in the metadata tells of others. Arrays
    under the keys ``whole`` are given with all their values, however long: a vocabulary, for example.

    Raises:
        CorruptError: if it breaks a rule of the format.
        RefusedError: if it is of a version, byte order or tensor type that is not taken, or passes a limit.
    """
    with Source(path, name) as source:
        return _Verifier(source, frozenset(whole)).verify()


class _Verifier:
    def __init__(self, source: Source, whole: frozenset[str]) -> None:
        self.source = source
        self.whole = whole
        self.at = 0
        self.texts = 0
        self.values = 0

    def verify(self) -> Summary:
        self._opening()
        tensor_count = self._count("tensors", self._u64("the tensor count"), 24, MAX_TENSORS)
        pair_count = self._count("metadata pairs", self._u64("the metadata count"), 13, MAX_PAIRS)
        metadata: dict[str, Any] = {}
        types: dict[str, int] = {}
        for _ in range(pair_count):
            key = self._text("a metadata key", MAX_KEY)
            if key in metadata or not key:
                problem = "a metadata key stands twice" if key else "a metadata key is empty"
                raise self.source.corrupt(problem, "each key once, none empty", quoted(key))
            kind = self._u32(f"the type of {quoted(key)}")
            if key == _ALIGNMENT and kind != 4:
                raise self.source.corrupt(f"{_ALIGNMENT} is wrong", "a uint32", self._kind(kind, key))
            metadata[key] = self._value(key, kind, 0)
        alignment = metadata.get(_ALIGNMENT, 32)
        if alignment == 0 or alignment & (alignment - 1):
            raise self.source.corrupt(f"{_ALIGNMENT} is wrong", "a power of two", str(alignment))
        tensors: list[_Tensor] = []
        names: set[str] = set()
        for _ in range(tensor_count):
            tensor, type_name, count = self._tensor(alignment)
            if tensor.name in names:
                raise self.source.corrupt("a tensor name stands twice", "each name once", quoted(tensor.name))
            names.add(tensor.name)
            tensors.append(tensor)
            types[type_name] = types.get(type_name, 0) + count
        self._layout(tensors, -(-self.at // alignment) * alignment)
        return Summary("gguf", tensor_count, sum(types.values()), metadata, element_types=types)

    def _opening(self) -> None:
        magic = self._take(4, "the magic bytes")
        if magic != b"GGUF":
            raise self.source.corrupt(
                "it is not a GGUF file", "the bytes GGUF at its start", quoted(magic.decode("latin-1"))
            )
        raw = self._take(4, "the version")
        version = int.from_bytes(raw, "little")
        if version in (2, 3):
            return
        swapped = int.from_bytes(raw, "big")
        raise self.source.refused(
            "it is of another byte order" if swapped in (1, 2, 3) else "it is of another GGUF version",
            "little-endian version 2 or 3",
            f"big-endian version {swapped}" if swapped in (1, 2, 3) else f"version {version}",
            "convert the model again with a current llama.cpp, for a little-endian machine",
        )

    def _layout(self, tensors: list[_Tensor], data: int) -> None:
        """Every tensor inside the file, none over another; ``data`` is where tensor data begins."""
        covered, before = 0, ""
        for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size)):
            if tensor.start < covered:
                raise self.source.corrupt(
                    f"tensors {quoted(before)} and {quoted(tensor.name)} overlap",
                    f"data from byte {covered}",
                    f"byte {tensor.start}",
                )
            if data + tensor.start + tensor.size > self.source.size:
                raise self.source.past_end(f"tensor {quoted(tensor.name)}", data + tensor.start, tensor.size)
            covered, before = tensor.start + tensor.size, tensor.name

    def _tensor(self, alignment: int) -> tuple[_Tensor, str, int]:
        name = self._text("a tensor name", MAX_NAME)
        what = f"tensor {quoted(name)}"
        axes = self._u32(f"the number of axes of {what}")
        if axes > MAX_DIMENSIONS:
            raise self.source.corrupt(f"{what} has too many axes", f"at most {MAX_DIMENSIONS}", str(axes))
        shape = tuple(self._u64(f"the shape of {what}") for _ in range(axes))
        number = self._u32(f"the type of {what}")
        start = self._u64(f"the offset of {what}")
        if number not in TYPES:
            raise self.source.refused(
                f"{what} has a type that " + ("ggml removed" if number in _REMOVED else "is unknown"),
                "one of " + ", ".join(entry[0] for entry in TYPES.values()),
                f"type {number}",
                "quantize the model again with a current llama.cpp",
            )
        type_name, block, block_bytes = TYPES[number]
        count = elements(shape)
        if count is None or 0 in shape:
            raise self.source.corrupt(
                f"{what} has an impossible shape",
                "axes of at least 1 with a product below 2^63",
                str(list(shape)),
            )
        if (shape[0] if shape else 1) % block:
            raise self.source.corrupt(
                f"{what} does not fill its blocks",
                f"a first axis in multiples of {block}",
                f"{type_name} {list(shape)}",
            )
        size = count // block * block_bytes
        if size > INT64_MAX or start > INT64_MAX:
            raise self.source.corrupt(
                f"{what} overflows", "a place below 2^63", f"{size} bytes at offset {start}"
            )
        if start % alignment:
            raise self.source.corrupt(
                f"{what} is not aligned", f"an offset in multiples of {alignment}", str(start)
            )
        return _Tensor(name, start, size), type_name, count

    def _value(self, key: str, kind: int, depth: int) -> Any:
        """The value of type ``kind`` at the reader's place; a long array is only measured."""
        self._charge(1)
        if kind == _STRING:
            # Tokens, unlike keys and names, need not be valid UTF-8.
            return self._text(f"the text of {quoted(key)}", MAX_TEXT, "backslashreplace")
        if kind != _ARRAY:
            self._kind(kind, key)
            layout = _SCALARS[kind]
            (value,) = layout.unpack(self._take(layout.size, f"the value of {quoted(key)}"))
            return self._truth(key, value) if kind == _BOOL else value
        if depth >= MAX_NESTING:
            raise self.source.refused(
                f"the array {quoted(key)} is nested too deep",
                f"at most {MAX_NESTING} levels",
                "more",
                "flatten it",
            )
        item = self._u32(f"the item type of {quoted(key)}")
        item_name = self._kind(item, key)
        least = _SCALARS[item].size if item in _SCALARS else 8 if item == _STRING else 12
        length = self._count(
            f"items of {quoted(key)}", self._u64(f"the length of {quoted(key)}"), least, INT64_MAX
        )
        if key == _TOKENS and depth == 0 and item == _STRING:
            self._compare_tokens(length)
        if key in self.whole and depth == 0 and item != _ARRAY:
            return self._values(key, item, length)
        if length <= MAX_SHOWN:
            return [self._value(key, item, depth + 1) for _ in range(length)]
        if item == _STRING:
            self._charge(length)
            self._hop_texts(key, length)
        elif item == _ARRAY:
            for _ in range(length):
                self._value(key, item, depth + 1)
        elif item == _BOOL:
            self._truths(key, length)
        else:
            self._skip(length * least, f"the array {quoted(key)}")
        return {"array": item_name, "length": length}

    def _compare_tokens(self, length: int) -> None:
        """No two tokens may be alike: llama.cpp aborts the whole process where they are. The reader stays here.

        Empty ones may: it gives each a name of its own.
        """
        if length > MAX_TOKENS:
            raise self.source.refused(
                "its vocabulary is too large", f"at most {MAX_TOKENS} tokens", str(length), "use another model"
            )
        known: dict[bytes, int] = {}
        for number, token in enumerate(self._texts_from(self.at, length)):
            before = known.setdefault(token, number) if token else number
            if before != number:
                raise self.source.refused(
                    "two tokens of its vocabulary have the same text",
                    "each text once, else llama.cpp cannot open it",
                    f"{quoted(token.decode(errors='backslashreplace'))} as tokens {before} and {number}",
                    "convert the model again; its tokenizer may have been damaged",
                )

    def _texts_from(self, place: int, length: int) -> Iterator[bytes]:
        """The ``length`` texts that stand one after another from ``place``."""
        what, source = f"a text of the array {quoted(_TOKENS)}", self.source
        chunk, at = b"", 0

        def need(count: int) -> None:
            nonlocal chunk, at, place
            if len(chunk) < at + count:
                place, at = place + at, 0
                chunk = source.read(place, max(count, min(1 << 16, source.size - place)), what)

        for _ in range(length):
            need(8)
            size = _LENGTH.unpack_from(chunk, at)[0]
            if size > MAX_TEXT:
                raise source.refused(
                    f"{what} is too long", f"at most {MAX_TEXT} bytes", f"{size} bytes", "use another model"
                )
            need(8 + size)
            yield chunk[at + 8 : at + 8 + size]
            at += 8 + size

    def _values(self, key: str, item: int, length: int) -> list[Any]:
        """All values of a long array of texts or numbers, without a call for each number."""
        self._charge(length)
        if item == _STRING:
            what = f"a text of the array {quoted(key)}"
            return [self._text(what, MAX_TEXT, "backslashreplace") for _ in range(length)]
        layout = _SCALARS[item]
        raw = self._take(length * layout.size, f"the array {quoted(key)}")
        values = [value for (value,) in layout.iter_unpack(raw)]
        return [self._truth(key, value) for value in values] if item == _BOOL else values

    def _charge(self, values: int) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            raise self.source.refused(
                "its metadata holds too much",
                f"at most {MAX_VALUES} values",
                f"{self.values}",
                "shorten its metadata",
            )

    def _hop_texts(self, key: str, length: int) -> None:
        """Pass over ``length`` texts in a row, of which only the lengths are read."""
        left, source = length, self.source
        while left:
            chunk = source.read(self.at, min(1 << 16, source.size - self.at), "the texts")
            at = 0
            while left and at + 8 <= len(chunk):
                at += 8 + _LENGTH.unpack_from(chunk, at)[0]
                left -= 1
            if at == 0 or self.at + at > source.size:
                raise source.past_end(f"a text of the array {quoted(key)}", self.at, max(at, 8))
            self.at += at

    def _truths(self, key: str, length: int) -> None:
        end = self.at + length
        while self.at < end:
            chunk = self._take(min(1 << 20, end - self.at), f"the array {quoted(key)}")
            if chunk.translate(None, b"\0\1"):
                self._truth(key, 2)

    def _truth(self, key: str, value: int) -> bool:
        if value > 1:
            raise self.source.corrupt(f"{quoted(key)} is no truth value", "0 or 1", "another byte")
        return value == 1

    def _kind(self, kind: int, key: str) -> str:
        if kind >= len(_VALUE_TYPES):
            raise self.source.corrupt(
                f"{quoted(key)} has an unknown type", f"0 to {len(_VALUE_TYPES) - 1}", str(kind)
            )
        return _VALUE_TYPES[kind]

    def _count(self, what: str, count: int, least: int, limit: int) -> int:
        """``count`` if so many things of at least ``least`` bytes can be in the bytes that are left."""
        left = self.source.size - self.at
        if count > left // least:
            raise self.source.corrupt(
                f"it claims {count} {what}", f"at most {left // least} in the {left} bytes left", str(count)
            )
        if count > limit:
            raise self.source.refused(
                f"it has too many {what}", f"at most {limit}", str(count), "split the model"
            )
        return count

    def _text(self, what: str, limit: int, errors: str = "strict") -> str:
        length = self._u64(f"the length of {what}")
        if length > self.source.size - self.at:
            raise self.source.past_end(what, self.at, length)
        self.texts += length
        if length > limit or self.texts > MAX_TEXTS:
            raise self.source.refused(
                f"{what} is too long",
                f"at most {limit} bytes",
                f"{length} bytes",
                "write the model with shorter texts",
            )
        raw = self._take(length, what)
        try:
            return raw.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise self.source.corrupt(f"{what} is not UTF-8", "text", shown(repr(raw[:40]))) from error

    def _u32(self, what: str) -> int:
        return int.from_bytes(self._take(4, what), "little")

    def _u64(self, what: str) -> int:
        return int.from_bytes(self._take(8, what), "little")

    def _take(self, count: int, what: str) -> bytes:
        data = self.source.read(self.at, count, what)
        self.at += count
        return data

    def _skip(self, count: int, what: str) -> None:
        if count > self.source.size - self.at:
            raise self.source.past_end(what, self.at, count)
        self.at += count
