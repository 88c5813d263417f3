"""SafeTensors: what the library writes is read right, and nothing else is taken (T5)."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from mlos.errors import CorruptError, RefusedError
from mlos.formats import detect, safetensors, verify

Refusal = Callable[[str, bytes], RefusedError]
Attack = Callable[[st.DataObject, bytes, str], None]

SOUND = save(
    {
        "bert.embeddings.weight": np.ones((4, 3), np.float32),
        "bert.ids": np.arange(5, dtype=np.int64),
        "empty": np.zeros((0, 7), np.float16),
        "scalar": np.array(True),
    },
    metadata={"format": "pt"},
)


def file_of(header: Any, data: bytes = b"", padding: bytes = b"") -> bytes:
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(written + padding)) + written + padding + data


def tensor(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def test_a_file_of_the_library_is_read_right(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(SOUND)
    summary = verify(path)
    assert detect(path) == "safetensors"
    assert (summary.format, summary.tensors, summary.parameters) == ("safetensors", 4, 12 + 5 + 0 + 1)
    assert summary.element_types == {"F32": 12, "I64": 5, "F16": 0, "BOOL": 1}
    assert summary.metadata == {"format": "pt"}
    assert (summary.inputs, summary.outputs, summary.external_files, summary.opset) == ((), (), (), None)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    save_file({"a": np.zeros(2, np.float32)}, path)
    assert detect(path) == "safetensors"
    assert verify(path).parameters == 2


@pytest.mark.parametrize("dtype", sorted(safetensors.BITS))
def test_every_element_type_has_its_size(tmp_path: Path, dtype: str) -> None:
    size = safetensors.BITS[dtype]  # bytes of eight elements
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": tensor(dtype, [2, 4], 0, size)}, bytes(size)))
    assert verify(path).element_types == {dtype: 8}


def test_no_tensors_and_padding_of_spaces_are_sound(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({}, padding=b"   "))
    assert verify(path).tensors == 0


BAD: dict[str, tuple[bytes, str]] = {
    "header points past the end": (struct.pack("<Q", 1000) + b"{}", "points past the end"),
    "header length of 2^64 - 1": (b"\xff" * 8 + b"{}", "points past the end"),
    "seven bytes": (b"\0" * 7, "too short"),
    "empty header": (file_of(b""), "not one JSON object"),
    "a list": (file_of(b"[]"), "not one JSON object"),
    "space first": (file_of(b" {}"), "not one JSON object"),
    "padding of newlines": (file_of({}, padding=b"\n"), "not one JSON object"),
    "padding of zeros": (file_of({}, padding=b"\0"), "not one JSON object"),
    "two objects": (file_of(b"{}{}"), "strict JSON"),
    "not UTF-8": (file_of(b'{"\xff":{}}'), "strict JSON"),
    "lone surrogate": (file_of(b'{"\\ud800":{}}'), "strict JSON"),
    "duplicate tensor": (
        file_of(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"1"),
        "stands twice",
    ),
    "duplicate key inside": (
        file_of(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"1"),
        "stands twice",
    ),
    "duplicate metadata": (file_of(b'{"__metadata__":{"a":"","a":""}}'), "stands twice"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata as text": (file_of({"__metadata__": "pt"}), "__metadata__"),
    "NaN": (file_of(b'{"a":NaN}'), "strict JSON"),
    "number with 5000 digits": (file_of(b'{"a":' + b"1" * 5000 + b"}"), "strict JSON"),
    "deep lists": (file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deep"),
    "deep objects": (file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "nested too deep"),
    "a tensor as text": (file_of({"a": "F32"}), "described wrongly"),
    "a key too many": (file_of({"a": tensor("U8", [0], 0, 0) | {"x": 1}}), "described wrongly"),
    "a key too few": (file_of({"a": {"dtype": "U8", "shape": []}}), "described wrongly"),
    "unknown element type": (file_of({"a": tensor("F128", [1], 0, 16)}, bytes(16)), "element type"),
    "element type of a list": (file_of({"a": tensor(["F32"], [1], 0, 4)}, bytes(4)), "element type"),
    "negative axis": (file_of({"a": tensor("U8", [-1, -4], 0, 4)}, bytes(4)), "valid shape"),
    "axis of a fraction": (file_of(b'{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"1"), "1.0"),
    "axis of true": (file_of({"a": tensor("U8", [True], 0, 1)}, b"1"), "valid shape"),
    "axis above 2^63": (file_of({"a": tensor("U8", [1 << 63], 0, 1)}, b"1"), "valid shape"),
    "product above 2^63": (file_of({"a": tensor("U8", [1 << 40, 1 << 40], 0, 1)}, b"1"), "overflows"),
    "product that wraps to 4": (file_of({"a": tensor("F32", [1 << 62, 4, 1], 0, 4)}, bytes(4)), "overflows"),
    "product that hides behind a zero": (
        file_of({"a": tensor("U8", [0, 1 << 40, 1 << 40], 0, 0)}),
        "overflows",
    ),
    "half a byte": (file_of({"a": tensor("F4", [3], 0, 2)}, bytes(2)), "wrong size"),
    "size of another type": (file_of({"a": tensor("F32", [4], 0, 8)}, bytes(8)), "wrong size"),
    "end before begin": (file_of({"a": tensor("U8", [1], 2, 1)}, bytes(2)), "data_offsets"),
    "three offsets": (file_of({"a": tensor("U8", [1], 0, 1, 1)}, b"1"), "data_offsets"),
    "negative offset": (file_of({"a": tensor("U8", [2], -1, 1)}, b"1"), "data_offsets"),
    "data past the end": (file_of({"a": tensor("U8", [2], 0, 2)}, b"1"), "past the end"),
    "bytes after the last": (file_of({"a": tensor("U8", [1], 0, 1)}, b"12"), "after the last"),
    "a hole at the start": (file_of({"a": tensor("U8", [1], 1, 2)}, b"12"), "hole"),
    "a hole between": (
        file_of({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 2, 3)}, b"123"),
        "hole",
    ),
    "an overlap": (file_of({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"123"), "overlaps"),
    "the same bytes twice": (
        file_of({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 0, 2)}, b"12"),
        "overlaps",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_header_that_breaks_a_rule_is_refused(refusal: Refusal, case: str) -> None:
    data, said = BAD[case]
    assert said in refusal("model.safetensors", data).message


def test_a_header_above_the_limit_is_not_even_parsed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)  # sparse
    with pytest.raises(RefusedError, match="the header is too large"):
        verify(path)


def test_a_header_of_a_million_parts_is_refused_before_it_is_built(refusal: Refusal) -> None:
    assert (
        "holds too much"
        in refusal("model.safetensors", file_of(b'{"a":[' + b"[]," * 1_000_000 + b"0]}")).message
    )


def test_a_name_with_control_characters_cannot_break_the_line(refusal: Refusal) -> None:
    error = refusal("model.safetensors", file_of({"a\n\x1b[2J" + "x" * 5000: "F32"}))
    assert "\\n\\x1b[2J" in error.message


@pytest.mark.parametrize("part", range(16))
def test_a_truncated_file_is_corrupt(refusal: Refusal, part: int) -> None:
    error = refusal("model.safetensors", SOUND[: len(SOUND) * part // 16])
    assert isinstance(error, CorruptError) or "an empty file" in error.message


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_no_mutation_crashes_it(attack: Attack, draw: st.DataObject) -> None:
    attack(draw, SOUND, "model.safetensors")
