"""Fill-mask answers what the framework's own pipeline answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import transformers
from tests.tasks.conftest import WORDS, Package

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError, WorkerError
from mlos.model import InferenceRequest
from mlos.tasks import Limits
from mlos.tasks.fill_mask import FillMask


@pytest.fixture(scope="module")
def pipeline(package: Package) -> Any:
    return transformers.pipeline("fill-mask", model=package.model, tokenizer=package.tokenizer, device="cpu")


@pytest.fixture(scope="module")
def task(package: Package) -> FillMask:
    return FillMask(package.folder, package.manifest, Limits())


def answer(package: Package, task: FillMask, **request: Any) -> Any:
    prepared = task.preprocess(InferenceRequest(**request))
    assert prepared.outputs == ("logits",)
    return task.postprocess(prepared, package.run(prepared.inputs))


def check_equal(ours: Any, theirs: Any) -> None:
    """Equal in everything but the last digits of the scores."""
    if isinstance(theirs, dict):
        assert set(ours) == set(theirs) == {"score", "token", "token_str", "sequence"}
        assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
        assert {**ours, "score": 0} == {**theirs, "score": 0}
        return
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        check_equal(one, other)


@pytest.mark.parametrize(
    "text",
    [
        "the [MASK] sat on a mat.",
        "[MASK]",
        "The cat isn't [MASK], it's walking!",
        "the [MASK] sat [MASK] a mat",
        "[MASK][MASK] [MASK]",
        "the [PAD] [MASK] x [SEP] cat",
    ],
)
def test_the_pipelines_answer(package: Package, pipeline: Any, task: FillMask, text: str) -> None:
    check_equal(answer(package, task, text=text), pipeline(text))


@pytest.mark.parametrize("top_k", [1, 3, len(WORDS)])
def test_as_many_as_were_asked_for(package: Package, pipeline: Any, task: FillMask, top_k: int) -> None:
    text = "a dog [MASK] in the rain"
    ours = answer(package, task, text=text, parameters={"top_k": top_k})
    assert len(ours) == top_k
    check_equal(ours, pipeline(text, top_k=top_k))


def test_no_more_than_the_vocabulary(package: Package, task: FillMask) -> None:
    assert len(answer(package, task, text="[MASK]", parameters={"top_k": 1000})) == len(WORDS)


def test_several_texts_are_answered_as_each_alone(package: Package, pipeline: Any, task: FillMask) -> None:
    texts = ["the [MASK] sat on a mat.", "[MASK] dog", "it [MASK] [MASK]"]
    check_equal(answer(package, task, texts=texts), pipeline(texts))
    check_equal(answer(package, task, texts=texts[:1]), [pipeline(texts[0])])


def test_a_long_text_is_cut_as_the_framework_cuts_it(package: Package, pipeline: Any, task: FillMask) -> None:
    text = "the [MASK] " + "cat " * 100
    limits = {"truncation": True, "max_length": 16}
    check_equal(answer(package, task, text=text), pipeline(text, tokenizer_kwargs=limits))


def test_it_accepts_texts_with_a_mask(task: FillMask) -> None:
    assert task.accepts(InferenceRequest(text="a [MASK]"))
    assert task.accepts(InferenceRequest(texts=["a", "[MASK]"]))
    assert not task.accepts(InferenceRequest(text="a mask"))
    assert not task.accepts(InferenceRequest(inputs={"input_ids": [[4]]}))


@pytest.mark.parametrize(
    ("request_", "field", "got"),
    [
        ({"text": "no mask"}, "text", "no mask token"),
        ({"text": ""}, "text", "no mask token"),
        ({"texts": ["[MASK]", "no mask"]}, "texts[1]", "no mask token"),
        ({"text": "cat " * 100 + "[MASK]"}, "text", "a mask beyond it"),
        ({"text": "[MASK]", "parameters": {"top_k": 0}}, "parameters.top_k", "0"),
        ({"text": "[MASK]", "parameters": {"top_k": 1001}}, "parameters.top_k", "1001"),
        ({"text": "[MASK]", "parameters": {"top_k": True}}, "parameters.top_k", "True"),
        ({"text": "[MASK]", "parameters": {"top_k": 2.0}}, "parameters.top_k", "2.0"),
        ({"text": "[MASK]", "parameters": {"topk": 2}}, "parameters.topk", "'topk'"),
    ],
)
def test_what_it_cannot_answer_is_named(task: FillMask, request_: Any, field: str, got: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        task.preprocess(InferenceRequest(**request_))
    assert (caught.value.field, caught.value.got) == (field, got)


@pytest.mark.parametrize(("masks", "top_k"), [(11, 100), (2, 501)])
def test_more_candidates_than_can_be_told_are_refused(task: FillMask, masks: int, top_k: int) -> None:
    request = InferenceRequest(text="[MASK] " * masks, parameters={"top_k": top_k})
    with pytest.raises(PayloadTooLargeError, match=f"{masks * top_k} candidates"):
        task.preprocess(request)


def test_nan_becomes_an_error_and_never_json(package: Package, task: FillMask) -> None:
    prepared = task.preprocess(InferenceRequest(text="the [MASK]"))
    outputs = package.run(prepared.inputs)
    outputs["logits"] = np.full_like(outputs["logits"], np.nan)
    with pytest.raises(WorkerError, match="NaN or infinity in 'logits'"):
        task.postprocess(prepared, outputs)


def test_huge_logits_overflow_nothing(package: Package, task: FillMask) -> None:
    prepared = task.preprocess(InferenceRequest(text="the [MASK]"))
    logits = np.zeros((1, 4, len(WORDS)), dtype=np.float32)
    logits[..., 7] = 3e38
    best = task.postprocess(prepared, {"logits": logits})[0]
    assert (best["token"], best["score"]) == (7, 1)


def test_a_package_that_cannot_fill_masks_is_refused(package: Package) -> None:
    with pytest.raises(RefusedError, match="no mask token"):
        FillMask(package.folder, package.with_options("fill-mask", mask_token=None), Limits())
    with pytest.raises(RefusedError, match=r"no token '<mask>'"):
        FillMask(package.folder, package.with_options("fill-mask", mask_token="<mask>"), Limits())
    artifact = package.manifest.artifact
    headless = artifact.model_copy(update={"outputs": artifact.outputs[1:]})
    with pytest.raises(RefusedError, match="no logits"):
        FillMask(package.folder, package.manifest.model_copy(update={"artifact": headless}), Limits())
