"""The gate on classifiers of texts and tokens: what a conversion could get wrong fails it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import Small

from mlos.axon.convert.text_classifier import TextClassifier
from mlos.engines import open_model
from mlos.errors import ParityError
from mlos.model import InferenceRequest
from mlos.tasks import Limits
from mlos.tasks.entities import STRATEGIES
from mlos.tasks.token_classification import TokenClassification

NAMES = ["distilbert-sst2", "distilbert-ner"]


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_tokenizer_fails(small: Small, tmp_path: Path, name: str) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    path = candidate.folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"].update(lowercase=False)
    path.write_text(json.dumps(content))
    with pytest.raises(ParityError, match="wrong tokenizer"):
        candidate.prove()


@pytest.mark.parametrize("name", NAMES)
def test_labels_in_another_order_fail(small: Small, tmp_path: Path, name: str) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    ((task, facts),) = candidate.converted.preprocessing.items()
    with pytest.raises(ParityError, match="wrong result"):
        candidate.prove(preprocessing={task: {**facts, "labels": facts["labels"][::-1]}})


def test_another_way_to_pool_fails(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("bge-small", tmp_path / "candidate")
    preprocessing = candidate.converted.preprocessing
    assert preprocessing["embeddings"]["pooling"] == "cls"
    wrong = {**preprocessing, "embeddings": {**preprocessing["embeddings"], "pooling": "mean"}}
    with pytest.raises(ParityError, match="wrong result"):
        candidate.prove(preprocessing=wrong)


@torch.no_grad()
def test_every_way_to_join_tokens_is_the_frameworks(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("distilbert-ner", tmp_path / "candidate")
    family = TextClassifier.load(small.repository("distilbert-ner"))
    task = TokenClassification(candidate.folder, candidate.draft(), Limits())
    engine = open_model(candidate.folder, candidate.converted.artifact, 1)
    texts = ["", "Zoë's café in Łódź is unmissable, \u4e2d\u6587 too", "Wolfgang Pauli, Zollikon"]
    for strategy in STRATEGIES:
        request = InferenceRequest(texts=texts, parameters={"aggregation_strategy": strategy})
        expected = [
            family.answer("asked", InferenceRequest(text=text, parameters=request.parameters)).result
            for text in texts
        ]
        prepared = task.preprocess(request)
        got = task.postprocess(prepared, engine.run(prepared.inputs, prepared.outputs))
        assert [[{**e, "score": 0} for e in one] for one in got] == [
            [{**e, "score": 0} for e in one] for one in expected
        ]
        ours, theirs = ([e["score"] for one in each for e in one] for each in (got, expected))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
