"""Models in several GGUF files: packaged whole, opened by the first, refused where a part is not right."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from tests.axon.conftest import answer
from tests.small import Small

from mlos.axon.llama_cpp_source import gguf
from mlos.axon.sources.selection import select
from mlos.engines import open_model
from mlos.errors import CorruptError, RefusedError
from mlos.formats import survey
from mlos.model import Manifest

PARTS = [f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def split(path: Path, folder: Path) -> Path:
    """``path`` in three parts, written byte by byte as gguf-split does; the first of them."""
    reader = gguf().GGUFReader(path)
    fields = [field for name, field in reader.fields.items() if not name.startswith("GGUF.")]
    share = -(-len(reader.tensors) // 3)
    folder.mkdir()
    for number, name in enumerate(PARTS):
        pairs = [b"".join(part.tobytes() for part in field.parts) for field in fields] if number == 0 else []
        for key, kind, value in (
            ("split.no", 2, struct.pack("<H", number)),
            ("split.count", 2, struct.pack("<H", 3)),
            ("split.tensors.count", 5, struct.pack("<i", len(reader.tensors))),
        ):
            pairs.append(struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value)
        described, data = b"", b""
        tensors = reader.tensors[number * share : (number + 1) * share]
        for tensor in tensors:
            described += b"".join(part.tobytes() for part in tensor.field.parts[:-1])
            described += struct.pack("<Q", len(data))
            data += tensor.data.tobytes()
            data += bytes(-len(data) % 32)
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + described
        (folder / name).write_bytes(head + bytes(-len(head) % 32) + data)
    return folder / PARTS[0]


def test_a_model_in_parts_is_packaged_and_answers_as_the_whole_one(small: Small, tmp_path: Path) -> None:
    folder, converted = small.converted("tinyllama")
    first = split(folder / "model.gguf", tmp_path / "parts")
    result = answer("install", f"file:{first}")
    assert result["name"] == "model"
    manifest = Manifest.model_validate(answer("info", "model")["manifest"])
    assert manifest.artifact.path == PARTS[0]
    assert [file.path for file in manifest.files if file.path.endswith(".gguf")] == PARTS
    inputs = {"input_ids": np.array([[1, 5, 7, 9]], dtype=np.int64)}
    logits = open_model(Path(result["folder"]), manifest.artifact, 1).run(inputs)["logits"]
    expected = open_model(folder, converted.artifact, 1).run(inputs)["logits"]
    np.testing.assert_array_equal(logits, expected)
    assert manifest.parameters == sum(summary.parameters for summary in survey(tmp_path / "parts").summaries)


def test_a_part_that_is_missing_or_another_is_said(small: Small, tmp_path: Path) -> None:
    folder, _ = small.converted("tinyllama")
    parts = split(folder / "model.gguf", tmp_path / "parts").parent
    third = (parts / PARTS[2]).read_bytes()
    (parts / PARTS[2]).write_bytes((parts / PARTS[1]).read_bytes())
    with pytest.raises(CorruptError, match=f"{PARTS[2]}: it is another part than its name says"):
        survey(parts)
    (parts / PARTS[2]).unlink()
    with pytest.raises(CorruptError, match=f"a part is missing: expected {PARTS[2]}"):
        survey(parts)
    (parts / PARTS[2]).write_bytes(third)
    (parts / PARTS[1]).rename(parts / "model-00004-of-00003.gguf")
    with pytest.raises(CorruptError, match="part"):
        survey(parts)


def test_all_parts_of_one_model_are_taken() -> None:
    small = [f"m-Q4_K_M-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert select([*small, "m-F16.gguf"], "it").paths == tuple(small)
    assert select([*small, "m-Q4_K_M.gguf"], "it").paths == ("m-Q4_K_M.gguf",)
    for there, missing in ((small[0], small[1]), (small[1], small[0])):
        with pytest.raises(RefusedError, match=f"without {missing}"):
            select([there], "it")
