"""Embeddings are the framework's hidden states, pooled and scaled as sentence-transformers does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.conftest import Package

from mlos.errors import InvalidInputError, RefusedError, WorkerError
from mlos.model import InferenceRequest
from mlos.tasks import Limits
from mlos.tasks.embeddings import Embeddings


@pytest.fixture(scope="module")
def task(package: Package) -> Embeddings:
    return Embeddings(package.folder, package.manifest, Limits())


def answer(package: Package, task: Embeddings, **request: Any) -> Any:
    prepared = task.preprocess(InferenceRequest(**request))
    assert prepared.outputs == ("last_hidden_state",)
    return task.postprocess(prepared, package.run(prepared.inputs))


@torch.no_grad()
def reference(package: Package, texts: list[str], *, normalize: bool) -> Any:
    """The pooling of sentence-transformers, in the framework."""
    encoded = package.tokenizer(texts, padding=True, truncation=True, max_length=8, return_tensors="pt")
    hidden = package.model.bert(**encoded).last_hidden_state
    mask = encoded["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
    vectors = torch.sum(hidden * mask, 1) / torch.clamp(mask.sum(1), min=1e-9)
    return (torch.nn.functional.normalize(vectors, p=2, dim=1) if normalize else vectors).numpy()


TEXTS = ["The cat sat on a mat.", "sun", "", "a dog runs in the rain and the sun and the rain"]


@pytest.mark.parametrize("normalize", [True, False])
def test_the_frameworks_vectors(package: Package, task: Embeddings, normalize: bool) -> None:
    ours = answer(package, task, texts=TEXTS, parameters={"normalize": normalize})
    assert [list(one) for one in ours] == [["embedding", "dimensions"]] * 4
    vectors = np.array([one["embedding"] for one in ours])
    np.testing.assert_allclose(vectors, reference(package, TEXTS, normalize=normalize), atol=1e-6)
    assert {one["dimensions"] for one in ours} == {16}
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) is normalize


def test_one_text_is_answered_with_one_vector(package: Package, task: Embeddings) -> None:
    ours = answer(package, task, text=TEXTS[0])
    np.testing.assert_allclose(ours["embedding"], reference(package, TEXTS[:1], normalize=True)[0], atol=1e-6)


def test_a_text_has_the_same_vector_in_any_company(package: Package, task: Embeddings) -> None:
    together = answer(package, task, texts=TEXTS)
    for text, one in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(answer(package, task, text=text)["embedding"], one["embedding"], atol=1e-6)


def test_the_package_says_whether_to_normalise(package: Package) -> None:
    plain = Embeddings(package.folder, package.with_options("embeddings", normalize=None), Limits())
    ours = answer(package, plain, text=TEXTS[0])
    np.testing.assert_allclose(ours["embedding"], reference(package, TEXTS[:1], normalize=False)[0], atol=1e-6)


def test_it_accepts_any_text(task: Embeddings) -> None:
    assert task.accepts(InferenceRequest(text=""))
    assert task.accepts(InferenceRequest(texts=["[MASK]"]))
    assert not task.accepts(InferenceRequest(inputs={}))


@pytest.mark.parametrize(
    ("parameters", "field"),
    [({"normalize": 1}, "parameters.normalize"), ({"pooling": "max"}, "parameters.pooling")],
)
def test_wrong_parameters_are_named(task: Embeddings, parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        task.preprocess(InferenceRequest(text="a", parameters=parameters))
    assert caught.value.field == field


def test_nan_becomes_an_error_and_never_json(package: Package, task: Embeddings) -> None:
    prepared = task.preprocess(InferenceRequest(text="the cat"))
    outputs = package.run(prepared.inputs)
    outputs["last_hidden_state"][0, 1, 2] = np.inf
    with pytest.raises(WorkerError, match="NaN or infinity in 'last_hidden_state'"):
        task.postprocess(prepared, outputs)


def test_a_package_that_cannot_embed_is_refused(package: Package) -> None:
    with pytest.raises(RefusedError, match="pools its embeddings by 'last'"):
        Embeddings(package.folder, package.with_options("embeddings", pooling="last"), Limits())
    artifact = package.manifest.artifact
    logits = artifact.model_copy(update={"outputs": artifact.outputs[:1]})
    with pytest.raises(RefusedError, match="no last_hidden_state"):
        Embeddings(package.folder, package.manifest.model_copy(update={"artifact": logits}), Limits())
