"""Every task behind one server: the commands of the documentation, and the odd things that people send.

That odd pictures and sounds become the framework's own pixels and samples, the tests of the tasks show.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from tests.acceptance.conftest import Served, serving
from tests.small import Small
from tests.tasks.pictures import picture, saved, turned

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


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def recorded(samples: Any, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV")
    return file.getvalue()


def odd_images() -> dict[str, bytes]:
    large = picture().resize((5477, 3652))
    return {
        "turned by EXIF": turned(6),
        "a grey PNG": saved(picture().convert("L"), "PNG"),
        "a CMYK JPEG": saved(picture().convert("CMYK"), "JPEG"),
        "20 megapixels": saved(large, "JPEG"),
        "one pixel": saved(picture().resize((1, 1)), "PNG"),
        "a line": saved(picture().resize((400, 1)), "PNG"),
        "half a JPEG": saved(picture(), "JPEG")[:5000],
        "nothing": b"",
    }


def odd_sounds() -> dict[str, bytes]:
    wave = np.sin(np.arange(44_100) / 20)
    return {
        "stereo at 44.1 kHz": recorded(np.stack([wave, -0.5 * wave], 1), 44_100),
        "silence": recorded(np.zeros(16_000), 16_000),
        "ten samples": recorded(np.zeros(10), 16_000),
        "no sample": recorded(np.zeros(0), 16_000),
        "nothing": b"",
    }


ODD_TEXTS = {
    "empty": "",
    "spaces": "   ",
    "100,000 characters": "word " * 20_000,
    "one word of 100,000 letters": "a" * 100_000,
    "a lone surrogate's neighbours": "\ufffd\u200d\u0000",
    "emoji and right to left": "\U0001f468\u200d\U0001f469 \u05e9\u05dc\u05d5\u05dd",
}
LABELS = {"clip": {"texts": ["a cat", "a dog"]}}
ODD: dict[str, tuple[tuple[str, ...], dict[str, dict[str, Any]]]] = {
    "image": (
        ("resnet", "clip", "detr", "dinov2", "segformer"),
        {name: {"image": encoded(content)} for name, content in odd_images().items()},
    ),
    "audio": (
        ("wav2vec2", "wav2vec2-base"),
        {name: {"audio": encoded(content)} for name, content in odd_sounds().items()},
    ),
    "text": (
        ("bert", "bge-small", "distilbert-ner", "distilbert-sst2", "minilm", "t5", "tinyllama"),
        {name: {"text": text} for name, text in ODD_TEXTS.items()},
    ),
}
SHORT = {"parameters": {"max_tokens": 2}}
WRITING = ("t5", "tinyllama")


@pytest.mark.parametrize(
    ("kind", "model"), [(kind, model) for kind, (models, _) in ODD.items() for model in models]
)
def test_odd_input_is_answered_or_refused_with_a_reason(every: Served, kind: str, model: str) -> None:
    workers = set()
    for name, request in ODD[kind][1].items():
        request = request | LABELS.get(model, {}) | (SHORT if model in WRITING else {})
        response = every.ask(model, request)
        if response.status_code == 200:
            result = response.json()["result"]  # a text without entities has none
            assert result or model == "distilbert-ner", f"{name}: {response.text[:200]}"
        else:
            assert response.status_code in (400, 413), f"{name}: {response.status_code} {response.text[:200]}"
            assert response.json()["error"]["message"], name
        workers.add(every.workers()[model])
    assert len(workers) == 1, "none died of it"
