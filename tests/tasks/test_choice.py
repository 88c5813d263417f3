"""A request finds its task by name, by what it holds, or by the first task that accepts it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.tasks.conftest import Package

from mlos.errors import InvalidInputError, NotFoundError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest
from mlos.settings import Settings
from mlos.tasks import Limits, Tasks, tasks_of


@pytest.fixture(scope="module")
def tasks(package: Package) -> Tasks:
    return tasks_of(package.folder, package.manifest)


def test_a_model_has_its_tasks_and_tensors(tasks: Tasks) -> None:
    assert tasks.names == ("fill-mask", "embeddings", "tensors")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        ({"text": "the [MASK]"}, "fill-mask"),
        ({"text": "the cat"}, "embeddings"),
        ({"text": ""}, "embeddings"),
        ({"texts": ["a", "b"]}, "embeddings"),
        ({"texts": ["[MASK]", "b"]}, "fill-mask"),
        ({"text": "the [MASK]", "task": "embeddings"}, "embeddings"),
        ({"text": "the cat", "task": "fill-mask"}, "fill-mask"),
        ({"inputs": {"input_ids": [[4]]}}, "tensors"),
        ({"inputs": {}, "task": "tensors"}, "tensors"),
    ],
)
def test_the_task_for_a_request(tasks: Tasks, request_: dict[str, Any], name: str) -> None:
    assert tasks.choose(InferenceRequest(**request_)).name == name


def test_an_unknown_task_is_named_beside_the_known(tasks: Tasks) -> None:
    with pytest.raises(NotFoundError, match="no task 'summarise'") as caught:
        tasks.choose(InferenceRequest(text="a", task="summarise"))
    assert (caught.value.field, caught.value.expected) == ("task", "fill-mask, embeddings, tensors")


@pytest.mark.parametrize(
    ("request_", "got"),
    [
        ({}, "none of them"),
        ({"task": "embeddings"}, "none of them"),
        ({"text": "a", "texts": ["b"]}, "text and texts"),
        ({"text": "a", "inputs": {}}, "text and inputs"),
        ({"text": "a", "texts": [], "inputs": {}}, "text and texts and inputs"),
        ({"text": "a", "outputs": ["logits"]}, "outputs with text"),
    ],
)
def test_a_request_holds_one_thing(tasks: Tasks, request_: dict[str, Any], got: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        tasks.choose(InferenceRequest(**request_))
    assert caught.value.got == got


def test_where_no_task_accepts_the_first_says_what_is_missing(package: Package) -> None:
    tasks = tasks_of(package.folder, package.manifest.model_copy(update={"tasks": ("fill-mask",)}))
    request = InferenceRequest(text="the cat")
    with pytest.raises(InvalidInputError, match=r"text has no mask token '\[MASK\]'"):
        tasks.choose(request).preprocess(request)


def test_a_bare_model_takes_tensors_alone(package: Package) -> None:
    tasks = tasks_of(package.folder, package.manifest.model_copy(update={"tasks": ("tensors",)}))
    assert tasks.names == ("tensors",)
    with pytest.raises(InvalidInputError, match="takes named tensors, not text") as caught:
        tasks.choose(InferenceRequest(text="a"))
    assert (caught.value.field, caught.value.expected) == ("text", "inputs")


def test_a_task_unknown_here_is_refused(package: Package) -> None:
    with pytest.raises(RefusedError, match="declares the task 'teleport'"):
        tasks_of(package.folder, package.manifest.model_copy(update={"tasks": ("teleport",)}))


@pytest.mark.parametrize("task", ["fill-mask", "embeddings"])
@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"texts": []}, "texts"),
        ({"inputs": {"input_ids": [[1]]}}, "inputs"),
        ({"text": "[MASK] \ud800"}, "text"),
    ],
)
def test_what_is_no_text_is_refused(tasks: Tasks, task: str, request_: dict[str, Any], field: str) -> None:
    request = InferenceRequest(task=task, **request_)
    with pytest.raises(InvalidInputError) as caught:
        tasks.choose(request).preprocess(request)
    assert caught.value.field == field


@pytest.mark.parametrize("task", ["fill-mask", "embeddings"])
def test_too_much_text_is_refused_before_it_is_tokenised(package: Package, task: str) -> None:
    tasks = tasks_of(package.folder, package.manifest, Limits(max_text_bytes=20))
    for fits in (
        InferenceRequest(text="[MASK]" + "é" * 7, task=task),
        InferenceRequest(texts=["[MASK] cat"] * 2),
    ):
        tasks.choose(fits).preprocess(fits)
    for over in ({"text": "[MASK]" + "é" * 8}, {"texts": ["[MASK] cat", "[MASK] cats"]}):
        request = InferenceRequest(task=task, **over)
        with pytest.raises(PayloadTooLargeError) as caught:
            tasks.choose(request).preprocess(request)
        assert (caught.value.expected, caught.value.http_status) == ("at most 20 bytes", 413)


def test_the_limit_is_that_of_the_settings() -> None:
    assert Settings().max_text_bytes == Limits().max_text_bytes == 1 << 20
