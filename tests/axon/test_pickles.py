"""Pickles (T1): refused by default; with ``--allow-pickle`` read in a sandbox, where attacks reach nothing."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import shutil
import socket
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.axon.conftest import answer, axon, contents, work_left
from tests.small import Small

from mlos.axon import convert, pickles_child
from mlos.axon.convert import child
from mlos.axon.pickles import policy_of, replace_pickles
from mlos.axon.sources.selection import select
from mlos.console import Console
from mlos.errors import CorruptError, MlosError, RefusedError
from mlos.host.child import run_confined
from mlos.store import Store

INDEX = "pytorch_model.bin.index.json"
ROOT = Path(__file__).parents[2]


def _silence(event: dict[str, Any]) -> None:
    """Nobody looks on."""


def read(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """What the child makes of the pickles in ``folder``."""
    threads = torch.get_num_threads()
    request = {"source": folder, "files": names, "output": folder / "made.safetensors"}
    try:
        pickles_child.main(request, _silence)
    finally:
        torch.set_num_threads(threads)
    return load_file(folder / "made.safetensors")


@pytest.fixture
def pickled(small: Small, tmp_path: Path) -> Path:
    """The small BERT, its weights as a pickle."""
    folder = tmp_path / "pickled"
    shutil.copytree(small.repository("bert"), folder)
    torch.save(OrderedDict(load_file(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_the_flag_packages_and_proves_a_pickle_and_the_manifest_says_so(pickled: Path, tmp_path: Path) -> None:
    store = tmp_path / "home" / "store"
    done = axon("install", f"file:{pickled}")
    assert done.returncode == 4
    assert "run code when read" in done.stderr
    assert "--allow-pickle" in done.stderr
    result = answer("install", "--allow-pickle", f"file:{pickled}")
    assert result["parity"]
    assert all(measure["passed"] for measure in result["parity"])
    manifest = answer("info", result["name"])["manifest"]
    assert manifest["source_format"] == "pytorch"
    assert manifest["tools"]["torch.load(weights_only=True)"] == torch.__version__
    assert not any(name.endswith((".bin", ".safetensors")) for name in contents(Path(result["folder"])))
    assert work_left(store) == []
    # What is made of the source again reads it as safely.
    variant = answer("convert", result["name"], "--format", "pt2")
    assert variant["reference"].startswith(f"file:{pickled}@")
    assert all(measure["passed"] for measure in variant["parity"])
    assert work_left(store) == []


def test_pickles_are_taken_only_with_the_flag_and_only_without_safetensors() -> None:
    names = ["config.json", "pytorch_model.bin", "training_args.bin", "model.py"]
    with pytest.raises(RefusedError) as caught:
        select(names, "a model")
    assert "--allow-pickle" in str(caught.value.hint)
    assert select(names, "a model", allow_pickle=True).paths == ("config.json", "pytorch_model.bin")
    safe = select([*names, "model.safetensors"], "a model", allow_pickle=True)
    assert safe.paths == ("config.json", "model.safetensors")
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    sharded = select(["config.json", INDEX, *shards], "a model", allow_pickle=True)
    assert sharded.paths == ("config.json", *shards, INDEX)
    assert select(["config.json", "w.pth"], "a model", allow_pickle=True).paths == ("config.json", "w.pth")
    with pytest.raises(RefusedError, match="2 pickles"):
        select(["a.pt", "b.pt"], "a model", allow_pickle=True)


@pytest.mark.parametrize("archive", [True, False])
def test_every_tensor_comes_through_and_shared_ones_become_copies(tmp_path: Path, archive: bool) -> None:
    weights = torch.arange(12.0).reshape(3, 4)
    held = {
        "tied": weights,
        "also": weights,
        "turned": weights.T,
        "row": weights[1],
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    checkpoint = {"state_dict": held, "epoch": 3}
    torch.save(checkpoint, tmp_path / "w.pt", _use_new_zipfile_serialization=archive)
    made = read(tmp_path, "w.pt")
    assert made.keys() == held.keys()
    for name, tensor in held.items():
        assert torch.equal(made[name], tensor.detach())
        assert made[name].dtype == tensor.dtype


def test_shards_are_joined_and_must_be_whole(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "1.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "2.bin")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin"}}))
    assert read(tmp_path, "1.bin", "2.bin").keys() == {"a", "b"}
    with pytest.raises(CorruptError, match="'b', which no shard holds"):
        read(tmp_path, "1.bin")
    shutil.copy(tmp_path / "1.bin", tmp_path / "2.bin")
    with pytest.raises(CorruptError, match="another file too"):
        read(tmp_path, "1.bin", "2.bin")


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.what


def attacks(canary: Path, port: int) -> dict[str, Call]:
    connect = f"import socket; socket.create_connection(('127.0.0.1', {port}), 5)"
    return {
        "program": Call(os.system, f"touch {canary}"),
        "file": Call(open, str(canary), "w"),
        "socket": Call(exec, connect),
    }


@pytest.mark.parametrize("kind", ["program", "file", "socket"])
@pytest.mark.parametrize("guarded", [True, False])
def test_a_pickle_that_attacks_reaches_nothing(
    tmp_path: Path, store: Store, console: Console, monkeypatch: pytest.MonkeyPatch, kind: str, guarded: bool
) -> None:
    """Read by the child; and by one without torch's guard, which the same sandbox stops."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    folder, output, canary = tmp_path / "in", tmp_path / "out", tmp_path / "canary"
    folder.mkdir()
    output.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        attack = attacks(canary, listener.getsockname()[1])[kind]
        if guarded:
            torch.save({"w": torch.ones(2), "x": attack}, folder / "pytorch_model.bin")
            with pytest.raises(RefusedError, match="no weights"):
                replace_pickles(folder, store, console)
            assert [path.name for path in folder.iterdir()] == ["pytorch_model.bin"]
            assert work_left(tmp_path / "home" / "store") == []
        else:
            path = folder / "raw.bin"
            path.write_bytes(pickle.dumps(attack))
            policy = policy_of(folder, output, 1 << 20)
            run = {"path": str(path)}
            stopped = run_confined("tests.axon.children.unpickle", run, policy, timeout=60)["stopped"]
            # system() reports a shell that could not be started by its status alone
            assert stopped == (None if kind == "program" else "PermissionError")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not canary.exists()
    assert list(output.iterdir()) == []


def _rebuilt(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Call:
    """A tensor of a storage of four numbers that lies about its place in it."""
    storage = torch.zeros(4)._typed_storage()  # type: ignore[no-untyped-call]  # it has no types
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def _compressed() -> bytes:
    """A bomb: the archive of a hundred megabytes of zeros, deflated."""
    plain, bomb = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(25 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return bomb.getvalue()


def _saved(held: Any, *, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(held, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a global that is no tensor's": lambda: _saved({"w": pathlib.PurePosixPath("/")}),
    "a compressed archive": _compressed,
    "an offset past the storage": lambda: _saved({"w": _rebuilt(1 << 20, (4,), (1,))}),
    "a shape past the storage": lambda: _saved({"w": _rebuilt(0, (64,), (1,))}),
    "a terabyte of one number": lambda: _saved({"w": _rebuilt(0, (1 << 38,), (0,))}),
    "a terabyte of one number, before archives": lambda: _saved(
        {"w": _rebuilt(0, (1 << 38,), (0,))}, archive=False
    ),
    "text in place of a tensor": lambda: _saved({"w": torch.ones(1), "x": "text"}),
    "a list": lambda: _saved([torch.ones(1)]),
    "no tensors": lambda: _saved({}),
    "a cut archive": lambda: _saved({"w": torch.ones(100)})[:-40],
    "nothing": lambda: b"",
    "a sparse tensor": lambda: _saved({"w": torch.eye(3).to_sparse()}),
}


@pytest.mark.filterwarnings("ignore")  # torch's own, of sparse tensors
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_plain_file_of_tensors_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "w.bin").write_bytes(HOSTILE[kind]())
    with pytest.raises(MlosError) as caught:
        read(tmp_path, "w.bin")
    assert isinstance(caught.value, RefusedError)
    assert caught.value.message.startswith("w.bin ")
    assert not (tmp_path / "made.safetensors").exists()


@pytest.mark.filterwarnings("ignore")  # the framework's, about its own future
def test_a_sharded_repository_converts_to_the_same_bytes(small: Small, tmp_path: Path) -> None:
    """The other weights in several files: SafeTensors with an index."""
    whole, converted = small.converted("bert")
    folder, output = tmp_path / "sharded", tmp_path / "output"
    shutil.copytree(small.repository("bert"), folder)
    output.mkdir()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    where = {name: shards[number % 2] for number, name in enumerate(sorted(tensors))}
    for shard in shards:
        save_file(
            {name: tensors[name] for name in tensors if where[name] == shard}, folder / shard, {"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    threads = torch.get_num_threads()
    try:
        child.main(convert.order(folder, output, [], converted.tasks), _silence)
    finally:
        torch.set_num_threads(threads)
    assert (output / "model.onnx.data").read_bytes() == (whole / "model.onnx.data").read_bytes()
    with np.load(output / "golden" / "tensors.npz") as arrays:
        assert arrays.files
