"""Every task behind one server: the commands of the documentation, and what people send by mistake."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.conftest import Served, serving
from tests.small import Small

import mlos.catalogue
from mlos.store import Store

CATALOGUE = Path(mlos.catalogue.__file__).parent
DOCS = Path(__file__).parents[2] / "docs"
MODELS = [
    "bart",
    "bert",
    "bge-small",
    "clip",
    "detr",
    "dinov2",
    "distilbert-ner",
    "distilbert-sst2",
    "minilm",
    "resnet",
    "segformer",
    "t5",
    "tinyllama",
    "wav2vec2",
    "wav2vec2-base",
]
"""Every model that the documentation asks, by its short name."""


@pytest.fixture(scope="module")
def every(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of the small variants of all of them."""
    home = tmp_path_factory.mktemp("every")
    for name in MODELS:
        small.install(name, Store(home / "store"))
    with serving(home, {}) as served:
        yield served


@pytest.fixture
def at_hand(tmp_path: Path) -> Path:
    """A folder with the files that the commands name."""
    for name, kind in (
        ("photo.jpg", "images/*.jpg"),
        ("speech.wav", "audio/*.wav"),
        ("music.flac", "audio/*.flac"),
    ):
        for path in sorted(CATALOGUE.glob(kind))[:1]:
            (tmp_path / name).write_bytes(path.read_bytes())
    return tmp_path


def commands_of_the_docs() -> list[str]:
    text = (DOCS / "requests.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.strip().split("\n")]


@pytest.mark.parametrize("command", commands_of_the_docs())
def test_a_command_of_the_docs_does_what_it_says(every: Served, at_hand: Path, command: str) -> None:
    host = every.url.removeprefix("http://")
    said = subprocess.run(
        [
            "bash",
            "-c",
            command.replace("localhost:8080", host).replace("curl ", "curl -sS --fail-with-body ", 1),
        ],
        cwd=at_hand,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    if "stream" in command:
        assert "event: answer" in said.stdout
    else:
        answer = json.loads(said.stdout)
        assert answer.get("result") or answer["choices"][0]["message"]
