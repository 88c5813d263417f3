from __future__ import annotations

import json

import pytest

from mlos.errors import RefusedError
from mlos.model import Artifact, FileEntry, Manifest

MANIFEST = Manifest(
    name="bert",
    reference="hf/google-bert/bert-base-uncased",
    commit="0" * 40,
    weights="hub",
    source_format="safetensors",
    tasks=("fill-mask", "embeddings"),
    artifact=Artifact(format="onnx", precision="fp32", path="model.onnx", inputs=(), outputs=()),
    files=(FileEntry(path="model.onnx", size=3, sha256="ab" * 32, role="graph"),),
)


def test_the_stored_form_reads_back_as_the_same_manifest() -> None:
    again = Manifest.parse(MANIFEST.canonical(), "test")
    assert again == MANIFEST
    assert again.digest == MANIFEST.digest


def test_any_change_changes_the_digest() -> None:
    assert MANIFEST.model_copy(update={"commit": "1" * 40}).digest != MANIFEST.digest


def test_f32_a_newer_schema_is_refused_with_what_to_do() -> None:
    newer = json.loads(MANIFEST.canonical()) | {"schema_version": 99}
    with pytest.raises(RefusedError, match="schema 99") as refused:
        Manifest.parse(json.dumps(newer).encode(), "bert")
    assert "upgrade" in str(refused.value.hint)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"schema_version": 1}', b"\xff"])
def test_what_is_no_manifest_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(RefusedError, match=r"package\.json"):
        Manifest.parse(data, "package.json")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\\b", "a\x00", ""])
def test_t9_a_file_entry_cannot_leave_the_package(path: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        FileEntry(path=path, size=0, sha256="ab" * 32, role="config")
