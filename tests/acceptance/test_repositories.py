"""Repositories that bring their own ONNX graph or GGUF file, behind one server: asked by their tasks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.acceptance.conftest import Served, serving
from tests.axon.onnx_repositories import published
from tests.small import Small

from mlos.axon.convert.gguf_files import write_gguf

TEXTS = ["A pleasure from the first minute to the last.", "Dull.", "Zoë's café in Łódź"]


@pytest.fixture(scope="module")
def served(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("repositories")
    published(small, "distilbert-sst2", home / "sentiments")
    write_gguf(small.repository("minilm"), home / "sentences.gguf", "F16", "BertModel")
    references = {"graph": f"file:{home}/sentiments", "encoder": f"file:{home}/sentences.gguf"}
    with serving(home, references) as server:
        yield server


def test_a_graph_is_asked_by_its_task_over_http(served: Served, small: Small, tmp_path: Path) -> None:
    expected = small.candidate("distilbert-sst2", tmp_path / "candidate").ask(texts=TEXTS)
    answered = served.ask("sentiments", {"texts": TEXTS}).json()
    assert (answered["task"], answered["result"]) == ("text-classification", expected)
    assert served.ask("sentiments", {"texts": TEXTS, "task": "fill-mask"}).status_code == 404
    shape = [1, 2]
    tensors = {name: np.ones(shape, dtype=int).tolist() for name in ("input_ids", "attention_mask")}
    assert served.ask("sentiments", {"inputs": tensors}).json()["task"] == "tensors"


def test_an_encoder_in_gguf_embeds_over_http(served: Served, small: Small, tmp_path: Path) -> None:
    expected = small.candidate("minilm", tmp_path / "candidate").ask(texts=TEXTS)
    answered = served.ask("sentences", {"texts": TEXTS, "parameters": {"normalize": True}}).json()
    assert (answered["task"], answered["engine"], answered["precision"]) == ("embeddings", "llama.cpp", "F16")
    for one, other in zip(answered["result"], expected, strict=True):
        assert np.dot(one["embedding"], other["embedding"]) > 0.9999
    alone = served.ask("sentences", {"text": TEXTS[0]}).json()["result"]["embedding"]
    cosine = np.dot(alone, answered["result"][0]["embedding"]) / np.linalg.norm(alone)
    assert cosine > 0.999999  # whatever stands beside it
    tokens = served.ask("sentences", {"text": "One cat.", "task": "token-embeddings"}).json()["result"]
    assert len(tokens["tokens"]) == len(tokens["embeddings"]) == 5
