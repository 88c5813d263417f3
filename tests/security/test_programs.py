"""Exported programs of torch can run code as they are loaded: none is loaded that conversion did not write."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from tests.axon.conftest import axon
from tests.core.conftest import Start
from tests.small import Small

from mlos.axon.convert.pt2_export import to_pt2
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.errors import CorruptError
from mlos.model import Artifact, FileEntry, Manifest
from mlos.settings import Settings
from mlos.store import InstallRecord, Package, Store
from mlos.tune.tuner import tune

ROW = {"inputs": {"x": [[1, 2, 3]]}}
PROGRAM = "model.pt2"


class Plus(torch.nn.Module):
    """Adds a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 10.0, 100.0]))

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        return (tensors[0] + self.weight,)


class Attack:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return os._exit, (7,)


def export(folder: Path) -> Artifact:
    axes = {name: {0: "rows"} for name in ("x", "y")}
    return to_pt2(Plus(), {"x": torch.ones(2, 3)}, ("y",), axes, folder).artifact


def poison(path: Path) -> None:
    """Put an attack in the place of a weight, and say that it is pickled."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (listing,) = (name for name in content if name.endswith("model_weights_config.json"))
    weights = json.loads(content[listing])
    (weight,) = weights["config"].values()
    weight["use_pickle"] = True
    content[listing] = json.dumps(weights).encode()
    (payload,) = (name for name in content if name.endswith(f"/{weight['path_name']}"))
    content[payload] = pickle.dumps(Attack())
    path.unlink()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def install(store: Store, *, poisoned: bool, variant_of: str | None = None) -> Package:
    """The program as a package; with ``poisoned`` one that was made so, and whose digest says nothing."""
    with store.staging() as staging:
        artifact = export(staging.folder)
        if poisoned:
            poison(staging.folder / PROGRAM)
        data = (staging.folder / PROGRAM).read_bytes()
        manifest = Manifest(
            name="plus",
            reference="hf/tests/plus@c1",
            commit="c1",
            weights="local",
            source_format="safetensors",
            tasks=("tensors",),
            artifact=artifact,
            variant_of=variant_of,
            files=(
                FileEntry(
                    path=PROGRAM, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role="weights"
                ),
            ),
        )
        return store.commit(staging, manifest, InstallRecord(installed_at=datetime.now(UTC), axon="0"))


def tamper(package: Package) -> None:
    """Poison it in the store."""
    package.path(PROGRAM).chmod(0o644)
    package.folder.chmod(0o755)
    poison(package.path(PROGRAM))


def test_a_program_that_was_changed_in_the_store_is_not_opened(start: Start, store: Store) -> None:
    package = install(store, poisoned=False)
    server = start()
    assert server.infer("plus", ROW).json["result"] == {"y": [[2, 12, 103]]}
    server.stop()
    tamper(package)
    changed = start()
    refused = changed.infer("plus", ROW)
    assert (refused.status, refused.error["code"], refused.error["field"]) == (422, "corrupt", PROGRAM)
    assert not [line for line in changed.lines() if line["message"] == "worker died"]


def test_nor_is_it_tuned(store: Store, small: Small, home: Path) -> None:
    original = small.install("bert", store)
    tamper(install(store, poisoned=False, variant_of=original.digest))
    console = Console(OutputFormat.QUIET, ProgressMode.NONE)
    with pytest.raises(CorruptError) as caught:
        tune(original, "fp32", Settings(home=home), console, threads=1, pairs=3, seed=0)
    assert caught.value.field == PROGRAM


def test_the_attack_is_one(start: Start, store: Store) -> None:
    """Were it opened, it would end the worker: the test above could fail."""
    install(store, poisoned=True)
    server = start()
    assert server.infer("plus", ROW).status == 503
    assert "status 7" in server.row("plus")["reason"]


@pytest.mark.parametrize("folder", [False, True])
def test_a_stranger_s_program_is_not_packaged(tmp_path: Path, folder: bool) -> None:
    export(tmp_path)
    done = axon("install", f"file:{tmp_path if folder else tmp_path / PROGRAM}", "--allow-pickle")
    assert done.returncode == 4, done.stderr
