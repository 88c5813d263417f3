"""Tiny packages to put into a store, and the store to put them into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlos.model import Artifact, FileEntry, Manifest
from mlos.store import InstallRecord, Package, Store

FILES: Mapping[str, bytes] = {
    "model.onnx": b"a graph",
    "tokenizer.json": b"{}",
    "golden/record.json": b"[1, 2]",
}
START = datetime(2026, 1, 1, tzinfo=UTC)

Describe = Callable[..., Manifest]
Install = Callable[..., Package]


def describe_files(
    files: Mapping[str, bytes] = FILES,
    *,
    name: str = "bert",
    repository: str = "org/bert-base",
    commit: str = "c1",
) -> Manifest:
    return Manifest(
        name=name,
        reference=f"hf/{repository}@{commit}",
        commit=commit,
        weights="local",
        source_format="onnx",
        tasks=("tensors",),
        artifact=Artifact(format="onnx", precision="fp32", path="model.onnx", inputs=(), outputs=()),
        files=tuple(
            FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role="document")
            for path, data in files.items()
        ),
    )


def install_files(
    store: Store,
    files: Mapping[str, bytes] = FILES,
    *,
    name: str = "bert",
    repository: str = "org/bert-base",
    commit: str = "c1",
    minute: int = 0,
) -> Package:
    """Install a package, ``minute`` minutes after the first day of the tests began."""
    with store.staging() as staging:
        for path, data in files.items():
            target = staging.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        manifest = describe_files(files, name=name, repository=repository, commit=commit)
        return store.commit(
            staging, manifest, InstallRecord(installed_at=START + timedelta(minutes=minute), axon="0.1")
        )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def describe() -> Describe:
    return describe_files


@pytest.fixture
def install() -> Install:
    return install_files
