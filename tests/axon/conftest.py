"""A hub on loopback, and models small enough to package within seconds."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.axon.hub_server import HubServer, Repository
from tests.axon.onnx_files import line
from tests.small import Small

from mlos.axon.install import install
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.settings import Settings
from mlos.store import Package, Store

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


AXON = Path(sys.executable).with_name("axon")
BERT = "google-bert/bert-base-uncased"


def axon(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the real program, in the test's environment."""
    return subprocess.run(
        [AXON, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def answer(*arguments: str) -> Any:
    """What the program answers as JSON, having succeeded."""
    done = axon(*arguments, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def keep(store: Store, folder: Path) -> Package:
    """A small package in ``store``, of a file in ``folder``, which nothing that a test does may touch."""
    console = Console(OutputFormat.QUIET, ProgressMode.NONE)
    settings = Settings(home=store.root.parent)
    return install(f"file:{line(folder / 'kept.onnx')}", settings, console).package


def contents(root: Path) -> dict[str, bytes]:
    """Every file below a folder; nothing if there is no folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def work_left(store: Path) -> list[str]:
    """What lies in the store's staging and partial folders, lock files apart."""
    return [
        path.name
        for folder in ("staging", "partial")
        for path in (store / folder).glob("*")
        if not path.name.endswith(".lock")
    ]


@pytest.fixture(scope="session")
def tiny_bert(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in the hub's layout: BERT's architecture, small, seeded."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    shutil.copytree(small.repository("bert"), folder, dirs_exist_ok=True)
    (folder / "README.md").write_text("# Tiny BERT")
    return folder


@pytest.fixture
def published(hub: HubServer, tiny_bert: Path) -> HubServer:
    """The hub, with the small BERT under the name of the large one."""
    hub.repositories[BERT] = Repository(contents(tiny_bert), card={"license": "apache-2.0"})
    return hub


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> tuple[dict[str, Any], Path]:
    """The brief's own command, run once against the hub on loopback: its answer and the home it filled."""
    home = tmp_path_factory.mktemp("made")
    server = HubServer()
    server.repositories[BERT] = Repository(contents(tiny_bert), card={"license": "apache-2.0"})
    with server.running(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(home / "hf"))
        patch.setenv("MLOS_HOME", str(home))
        patch.setenv("MLOS_CONFIG", str(home / "no-config.toml"))
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        result = answer("install", "hf/google/bert-base-uncased@latest")
    return result, home


@pytest.fixture
def home(made: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    """A copy of that home, hard links kept, as the test's own MLOS_HOME."""
    subprocess.run(["cp", "-a", made[1], tmp_path / "home"], check=True)
    return tmp_path / "home"


def gguf(tensors: int = 1, architecture: str = "llama") -> bytes:
    """A GGUF file of version 3 with one key and, really, one tensor of eight fp32 numbers."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text(architecture)
    head += text("weight") + struct.pack("<I", 1) + struct.pack("<Q", 8) + struct.pack("<IQ", 0, 0)
    return head + b"\0" * (-len(head) % 32) + struct.pack("<8f", *range(8))
