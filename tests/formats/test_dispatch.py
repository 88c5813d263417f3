"""Formats are told apart by content; pickles are refused with the reason and the way out (T1)."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlos.errors import MlosError, NotFoundError, RefusedError
from mlos.formats import detect, verify

Refusal = Callable[[str, bytes], RefusedError]
CANARY = "canary"


class Attack:
    """What a pickle can do: run a command while it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {CANARY}",)


def saved(*, new_zipfile: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=new_zipfile)
    return buffer.getvalue()


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name in names:
            zipped.writestr(name, b"x" * 2000)
    return buffer.getvalue()


def tar(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        packed.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


PICKLES = {
    "torch": saved(new_zipfile=True),
    "torch before 1.6": saved(new_zipfile=False),
    "an attack": pickle.dumps(Attack()),
    "protocol 5": pickle.dumps([1, 2], protocol=5),
    "a zip whose pickle comes last": archive("a/weights", "a/data.pkl"),
    "torch 0.1": tar("sys_info"),
    "torch 0.1 with a dot": tar("./pickle"),
}


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.safetensors", "model.onnx", "model.gguf", "model"]
)
@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_is_known_under_any_name_and_never_loaded(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refusal(name, PICKLES[case])
    assert detect(tmp_path / name) == "pytorch"
    assert "can run any code when it is loaded" in error.message
    assert "safetensors" in str(error.hint)
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.PTH", "a.ckpt"])
def test_the_name_decides_where_the_content_says_nothing(refusal: Refusal, tmp_path: Path, name: str) -> None:
    data = pickle.dumps([1], protocol=0)
    assert "can run any code" in refusal(name, data).message
    assert detect(tmp_path / name) == "pytorch"
    (tmp_path / "readme").write_bytes(data)
    assert detect(tmp_path / "readme") is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (b"  <html>", "a web page"),
        (archive("a.txt"), "a zip archive"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"\x89HDF\r\n", "HDF5"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"just words", "just words"),
        (bytes(range(256)), "an unknown format"),
    ],
)
def test_what_is_no_model_is_said_to_be_what_it_is(refusal: Refusal, data: bytes, said: str) -> None:
    assert said in refusal("download", data).message


def test_a_name_that_claims_another_format_is_refused(refusal: Refusal) -> None:
    error = refusal("model.onnx", b"GGUF" + bytes(20))
    assert (error.expected, error.got) == ("onnx", "gguf")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("pipe.onnx", "."):
        with pytest.raises(RefusedError, match="regular file"):
            verify(tmp_path / name)
    for missing in ("missing.onnx", "a\0b"):
        with pytest.raises(MlosError) as caught:
            detect(tmp_path / missing)
        assert isinstance(caught.value, NotFoundError | RefusedError)


def test_errors_use_the_name_they_are_told(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"GGUF")
    with pytest.raises(RefusedError, match=r"onnx/model\.gguf"):
        verify(tmp_path / "blob", "onnx/model.gguf")
