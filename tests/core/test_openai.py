"""OpenAI's completions, embeddings and models, as its own client speaks the protocol."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from tests.core import packages
from tests.core.conftest import Server, running
from tests.core.plugins import count_as

from mlos.store import Store

TEXTS = ["mlos makes", "ml deployment easy"]


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A server of a model that writes, as its client; the tests leave it as it was."""
    folder = tmp_path_factory.mktemp("counter")
    count_as(folder, "text-generation")
    packages.double(Store(folder / "store"), "counter", tasks=("text-generation",))
    with running(folder) as server:
        yield client_of(server)


@pytest.fixture(scope="module")
def client(shared: Server) -> openai.OpenAI:
    return client_of(shared)


def test_a_prompt_is_continued(counter: openai.OpenAI) -> None:
    # The counting task knows none of a language model's parameters, and is not asked to: it is told them all.
    answer = counter.completions.create(model="counter", prompt="3")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "0 1 2 ", "stop", None)
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    used = answer.usage
    assert (used.prompt_tokens, used.completion_tokens, used.total_tokens) == (1, 3, 4)
    assert counter.completions.create(model="counter", prompt=["3"]).choices == answer.choices


def test_it_comes_in_parts(counter: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(counter.completions.create(model="counter", prompt="2", stream=True, stream_options=options))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert [choice.text for choice in choices] == ["0 ", "1 ", ""]
    assert [choice.finish_reason for choice in choices] == [None, None, "stop"]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"logprobs": 1}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"prompt": ["1", "2"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": "many"}, "prompt"),
    ],
)
def test_what_is_not_taken_is_refused_by_its_name(
    counter: openai.OpenAI, change: dict[str, Any], field: str
) -> None:
    asked: dict[str, Any] = {"model": "counter", "prompt": "1"} | change
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            counter.completions.create(**asked, stream=stream)
        assert caught.value.param == field


def test_texts_are_embedded_as_by_v1(client: openai.OpenAI, shared: Server) -> None:
    expected = [each["embedding"] for each in shared.infer("embedder", {"texts": TEXTS}).json["result"]]
    for coding in ("float", "base64"):
        answer = client.embeddings.create(model="embedder", input=TEXTS, encoding_format=coding)
        assert [each.index for each in answer.data] == [0, 1]
        vectors: list[Any] = [
            each.embedding for each in answer.data
        ]  # texts, where they were asked for as such
        if coding == "base64":
            vectors = [np.frombuffer(base64.b64decode(vector), "<f4").tolist() for vector in vectors]
        assert vectors == expected
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (5, 5)
    # Without a word about it the client asks for base64 and makes numbers of it itself.
    (alone,) = client.embeddings.create(model="embedder", input=TEXTS[0]).data
    assert np.allclose(alone.embedding, expected[0])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input[0]"),
        ({"input": "a" * 10_000}, "input"),
        ({"dimensions": 2}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_its_name(
    client: openai.OpenAI, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.embeddings.create(**{"model": "embedder", "input": "mlos", **change})
    assert caught.value.status_code in (400, 413)
    assert caught.value.param == field


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"double", "logarithm", "slow", "embedder"}
    assert client.models.retrieve("double").owned_by == "tests"
    for ask in (
        lambda: client.models.retrieve("nobody"),
        lambda: client.embeddings.create(model="nobody", input="a"),
        lambda: client.embeddings.create(model="double", input="a"),
        lambda: client.completions.create(model="double", prompt="a"),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
