"""A hub on loopback, and models small enough to package within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.axon.hub_server import HubServer, Repository

from mlos.console import Console, OutputFormat, ProgressMode
from mlos.store import Store

CONFIG = b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'
WEIGHTS = bytes(range(256)) * 4096
"""A mebibyte that stands for weights where nothing looks inside."""


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No token, cache, store or setting of the person who runs the tests."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf-home" / "token"))
    monkeypatch.setenv("MLOS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLOS_CONFIG", str(tmp_path / "no-config.toml"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    server = HubServer()
    server.repositories["org/model"] = Repository(
        {
            "config.json": CONFIG,
            "model.safetensors": WEIGHTS,
            "README.md": b"# a model",
            "train.py": b"import os",
        },
        card={"license": "apache-2.0"},
    )
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with server.running():
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home" / "store")


@pytest.fixture
def console() -> Console:
    return Console(OutputFormat.QUIET, ProgressMode.NONE)
