"""GGUF: built by hand after the specification; counts, sizes and places that lie are refused (T4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlos.errors import CorruptError, RefusedError
from mlos.formats import detect, gguf, verify

Refusal = Callable[[str, bytes], RefusedError]
Attack = Callable[[st.DataObject, bytes, str], None]
U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
HUGE = (1 << 64) - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def array(kind: int, count: int, items: bytes) -> bytes:
    return u32(kind) + u64(count) + items


@dataclass
class Gguf:
    """A GGUF file, piece by piece; its counts and its version can be made to lie."""

    version: bytes = u32(3)
    pairs: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32
    tensor_count: int | None = None
    pair_count: int | None = None

    def pair(self, key: str | bytes, kind: int, value: bytes) -> Gguf:
        self.pairs.append(text(key) + u32(kind) + value)
        return self

    def tensor(self, name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> Gguf:
        axes = b"".join(u64(axis) for axis in shape)
        self.tensors.append(text(name) + u32(len(shape)) + axes + u32(kind) + u64(offset))
        return self

    def built(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        pair_count = len(self.pairs) if self.pair_count is None else self.pair_count
        head = b"GGUF" + self.version + u64(tensor_count) + u64(pair_count)
        head += b"".join(self.pairs) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def sound() -> Gguf:
    model = Gguf(data=bytes(192 + 144))
    model.pair("general.architecture", STRING, text("llama"))
    model.pair("general.alignment", U32, u32(32))
    model.pair("llama.context_length", U32, u32(2048))
    model.pair("llama.rope.freq_base", F32, struct.pack("<f", 0.5))
    model.pair("tokenizer.ggml.add_bos_token", BOOL, b"\1")
    model.pair("tokenizer.ggml.tokens", ARRAY, array(STRING, 100, b"".join(text(f"t{i}") for i in range(100))))
    model.pair("tokenizer.ggml.scores", ARRAY, array(F32, 100, bytes(400)))
    model.pair("tokenizer.ggml.eot", ARRAY, array(U32, 2, u32(7) + u32(8)))
    model.pair("split.count", 2, struct.pack("<H", 3))
    model.tensor("token_embd.weight", [32, 4], 8, 0)  # Q8_0: 4 blocks of 34 bytes
    model.tensor("output_norm.weight", [5], 0, 160)
    return model.tensor("blk.0.weight", [256, 1, 1, 1], 12, 192)  # Q4_K: one block of 144 bytes


SOUND = sound().built()


def test_a_sound_file_is_read_right(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(SOUND)
    summary = verify(path)
    assert detect(path) == "gguf"
    assert (summary.format, summary.tensors, summary.parameters) == ("gguf", 3, 128 + 5 + 256)
    assert summary.element_types == {"Q8_0": 128, "F32": 5, "Q4_K": 256}
    assert summary.metadata == {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.context_length": 2048,
        "llama.rope.freq_base": 0.5,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.tokens": {"array": "string", "length": 100},
        "tokenizer.ggml.scores": {"array": "float32", "length": 100},
        "tokenizer.ggml.eot": [7, 8],
        "split.count": 3,
    }


def test_arrays_that_are_asked_for_are_given_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    model = Gguf().pair("texts", ARRAY, array(STRING, 100, b"".join(text(f"t{i}") for i in range(100))))
    model.pair("numbers", ARRAY, array(F32, 100, struct.pack("<100f", *range(100))))
    model.pair("truths", ARRAY, array(BOOL, 100, bytes([1, 0] * 50)))
    model.pair("nested", ARRAY, array(ARRAY, 1, array(U8, 65, bytes(65))))
    model.pair("short", ARRAY, array(U8, 1, b"\7"))
    model.pair("other", ARRAY, array(U8, 65, bytes(65)))
    path.write_bytes(model.built())
    assert gguf.verify(path, whole=["texts", "numbers", "truths", "nested", "short", "absent"]).metadata == {
        "texts": [f"t{i}" for i in range(100)],
        "numbers": [float(i) for i in range(100)],
        "truths": [True, False] * 50,
        "nested": [{"array": "uint8", "length": 65}],
        "short": [7],
        "other": {"array": "uint8", "length": 65},
    }


@pytest.mark.parametrize(
    ("kind", "items"),
    [(U8, bytes(100)), (BOOL, b"\2" * 100), (STRING, text("ab") * 100)],
    ids=["u8", "bool", "text"],
)
def test_arrays_given_whole_are_bounded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, items: bytes
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Gguf().pair("a", ARRAY, array(kind, 100, items)).built())
    if kind == BOOL:
        with pytest.raises(CorruptError, match="is no truth value"):
            gguf.verify(path, whole=["a"])
    monkeypatch.setattr(gguf, "MAX_VALUES", 99)
    with pytest.raises(RefusedError, match="holds too much"):
        gguf.verify(path, whole=["a"])
    path.write_bytes(Gguf().pair("a", ARRAY, array(kind, 101, items)).built())
    with pytest.raises(RefusedError):
        gguf.verify(path, whole=["a"])


def vocabulary(*tokens: str | bytes) -> Gguf:
    return Gguf().pair("tokenizer.ggml.tokens", ARRAY, array(STRING, len(tokens), b"".join(map(text, tokens))))


@pytest.mark.parametrize("others", [1, 63, 20_000])
def test_a_vocabulary_with_a_token_twice_is_refused(tmp_path: Path, refusal: Refusal, others: int) -> None:
    """llama.cpp would abort, and its process with it."""
    tokens = [f"token {number}" for number in range(others)]
    (tmp_path / "sound.gguf").write_bytes(vocabulary(*tokens, "", "", b"\xff", b"\xfe", "x" * 70_000).built())
    assert verify(tmp_path / "sound.gguf").metadata["tokenizer.ggml.tokens"]
    error = refusal("twice.gguf", vocabulary("\ufffd", *tokens, "\ufffd").built())
    assert "two tokens of its vocabulary have the same text" in error.message
    assert f"as tokens 0 and {others + 1}" in (error.got or "")


def test_a_vocabulary_is_bounded(refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "MAX_TOKENS", 99)
    assert "at most 99 tokens" in (refusal("large.gguf", SOUND).expected or "")
    monkeypatch.setattr(gguf, "MAX_TOKENS", 100)
    monkeypatch.setattr(gguf, "MAX_TEXT", 1000)
    assert "too long" in refusal("long.gguf", vocabulary("x" * 70_000).built()).message


def test_version_2_is_read_and_a_file_without_tensors_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(Gguf(version=u32(2)).built()[:24])
    assert verify(path).tensors == 0


@pytest.mark.parametrize("kind", gguf.TYPES)
def test_a_tensor_of_every_type_ends_where_its_blocks_end(tmp_path: Path, refusal: Refusal, kind: int) -> None:
    name, block, size = gguf.TYPES[kind]
    whole = Gguf(data=bytes(6 * size)).tensor("t", [2 * block, 3], kind, 0).built()
    path = tmp_path / "model.gguf"
    path.write_bytes(whole)
    assert verify(path).element_types == {name: 6 * block}
    assert "past the end" in refusal("short.gguf", whole[:-1]).message
    if block > 1:
        error = refusal("partial.gguf", Gguf(data=bytes(6 * size)).tensor("t", [block + 1], kind, 0).built())
        assert "does not fill its blocks" in error.message


def test_nested_arrays_and_tokens_that_are_no_text_are_read(tmp_path: Path) -> None:
    inner = array(STRING, 1, text(b"\xff"))
    path = tmp_path / "model.gguf"
    path.write_bytes(Gguf().pair("a", ARRAY, array(ARRAY, 2, inner + inner)).built())
    assert verify(path).metadata == {"a": [["\\xff"], ["\\xff"]]}


def nested(depth: int) -> bytes:
    return array(U8, 0, b"") if depth == 0 else array(ARRAY, 1, nested(depth - 1))


BAD: dict[str, tuple[Gguf, str]] = {
    "overflowing tensor count": (Gguf(tensor_count=HUGE), f"claims {HUGE} tensors"),
    "tensor count that wraps": (Gguf(tensor_count=HUGE // 24 + 2), "claims"),
    "overflowing pair count": (Gguf(pair_count=HUGE), "claims"),
    "one tensor too many": (Gguf(tensor_count=1), "claims 1 tensors"),
    "one pair too many": (Gguf(pair_count=2).pair("a", U32, u32(1)), "a metadata key is empty"),
    "version 1": (Gguf(version=u32(1)), "another GGUF version"),
    "version 4": (Gguf(version=u32(4)), "another GGUF version"),
    "big-endian": (Gguf(version=struct.pack(">I", 3)), "byte order"),
    "key past the end": (Gguf(pairs=[u64(HUGE) + bytes(16)]), "past the end"),
    "key too long": (Gguf().pair("k" * 65_536, U8, b"1"), "too long"),
    "key that is no text": (Gguf().pair(b"\xff\xfe", U8, b"1"), "not UTF-8"),
    "empty key": (Gguf().pair("", U8, b"1"), "a metadata key is empty"),
    "key twice": (Gguf().pair("a", U8, b"1").pair("a", U8, b"1"), "key stands twice"),
    "unknown value type": (Gguf().pair("a", 13, bytes(8)), "unknown type"),
    "unknown item type": (Gguf().pair("a", ARRAY, array(99, 0, b"")), "unknown type"),
    "text past the end": (Gguf().pair("a", STRING, u64(1 << 62)), "past the end"),
    "truth value of two": (Gguf().pair("a", BOOL, b"\2"), "truth value"),
    "truth values of two": (Gguf().pair("a", ARRAY, array(BOOL, 100, bytes(99) + b"\2")), "truth value"),
    "array past the end": (Gguf().pair("a", ARRAY, array(F32, 1 << 62, bytes(64))), "claims"),
    "array whose bytes wrap": (Gguf().pair("a", ARRAY, array(U64, (1 << 61) + 1, bytes(64))), "claims"),
    "array of texts past the end": (
        Gguf().pair("a", ARRAY, array(STRING, 100, text("x") * 99 + u64(1 << 60) + bytes(8))),
        "past the end",
    ),
    "nested too deep": (Gguf().pair("a", ARRAY, nested(5)), "nested too deep"),
    "nested a thousand deep": (Gguf().pair("a", ARRAY, nested(900)), "nested too deep"),
    "alignment of zero": (Gguf().pair("general.alignment", U32, u32(0)), "power of two"),
    "alignment of 24": (Gguf().pair("general.alignment", U32, u32(24)), "power of two"),
    "alignment as a text": (Gguf().pair("general.alignment", STRING, text("32")), "a uint32"),
    "alignment as a 64-bit number": (Gguf().pair("general.alignment", U64, u64(32)), "a uint32"),
    "five axes": (Gguf(data=bytes(32)).tensor("t", [1] * 5, 0, 0), "too many axes"),
    "axis of zero": (Gguf(data=bytes(32)).tensor("t", [0], 0, 0), "impossible shape"),
    "negative axis": (Gguf(data=bytes(32)).tensor("t", [HUGE], 0, 0), "impossible shape"),
    "product above 2^63": (Gguf(data=bytes(32)).tensor("t", [1 << 32, 1 << 32], 0, 0), "impossible shape"),
    "product that wraps to 1": (Gguf(data=bytes(32)).tensor("t", [HUGE, HUGE], 0, 0), "impossible shape"),
    "size above 2^63": (Gguf(data=bytes(32)).tensor("t", [1 << 62], 0, 0), "overflows"),
    "unknown type": (Gguf(data=bytes(32)).tensor("t", [1], 99, 0), "is unknown"),
    "removed type": (Gguf(data=bytes(32)).tensor("t", [32], 4, 0), "removed"),
    "offset past the end": (Gguf(data=bytes(32)).tensor("t", [1], 0, 64), "past the end"),
    "offset that wraps": (Gguf(data=bytes(32)).tensor("t", [1], 0, HUGE - 31), "overflows"),
    "offset not aligned": (Gguf(data=bytes(64)).tensor("t", [1], 0, 4), "not aligned"),
    "offset not aligned to 64": (
        Gguf(data=bytes(256), alignment=64).pair("general.alignment", U32, u32(64)).tensor("t", [1], 0, 32),
        "not aligned",
    ),
    "overlap": (Gguf(data=bytes(96)).tensor("a", [16], 0, 0).tensor("b", [1], 0, 32), "overlap"),
    "the same bytes twice": (Gguf(data=bytes(32)).tensor("a", [1], 0, 0).tensor("b", [1], 0, 0), "overlap"),
    "name twice": (Gguf(data=bytes(64)).tensor("a", [1], 0, 0).tensor("a", [1], 0, 32), "name stands twice"),
    "name too long": (Gguf(data=bytes(64)).tensor("a" * 65, [1], 0, 0), "too long"),
    "name past the end": (Gguf(tensors=[u64(HUGE) + bytes(32)]), "past the end"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_breaks_a_rule_is_refused(refusal: Refusal, case: str) -> None:
    model, said = BAD[case]
    assert said in refusal("model.gguf", model.built()).message


def test_millions_of_small_values_are_refused(refusal: Refusal) -> None:
    one = Gguf().pair("a", ARRAY, array(STRING, 4_000_001, bytes(8 * 4_000_001)))
    assert "holds too much" in refusal("model.gguf", one.built()).message


@pytest.mark.parametrize("part", range(16))
def test_a_truncated_file_is_corrupt(refusal: Refusal, part: int) -> None:
    error = refusal("model.gguf", SOUND[: len(SOUND) * part // 16])
    assert isinstance(error, CorruptError) or "an empty file" in error.message


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_no_mutation_crashes_it(attack: Attack, draw: st.DataObject) -> None:
    attack(draw, SOUND, "model.gguf")
