"""F17: a poisonous request is refused by name; the worker, its health and the next answers stay as they were.

All of it goes to one live server of two models, a small language model and a small encoder, over V1, V2 and
OpenAI's protocol. What is no JSON and no tensor at all is in ``tests/core/test_http.py`` and ``test_v2.py``, a
tokenizer's regular expression that never ends in ``tests/security/test_t14_tokenizing.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from tests.core.conftest import Answer, Server, running
from tests.core.handling import alive
from tests.small import Small
from tests.tiny_llama import tiny_llama

from mlos.store import Store

LLAMA, BERT = "tinyllama", "bert"
# No two tokens of this answer lie close together: neighbours and a warm cache leave it as it is.
GOOD: list[tuple[str, Any]] = [
    (LLAMA, {"prompt": "The ship", "parameters": {"max_tokens": 4}}),
    (BERT, {"text": "a river of [MASK] stones"}),
    (BERT, {"text": "a river of stones"}),
]
WAYS = ("V1", "V2", "completions", "chat")
"""In which a language model is asked to write."""


@dataclass
class Served:
    """The server, and what it was before anything poisonous came: its answers and its workers."""

    server: Server
    answers: list[Any]
    workers: list[int]

    def post(self, path: str, body: str | bytes | dict[str, Any]) -> Answer:
        text = json.dumps(body) if isinstance(body, dict) else body
        return self.server.request("POST", path, text.encode() if isinstance(text, str) else text)

    def write(self, way: str, prompt: str, parameters: str = "") -> Answer:
        """Ask the language model; ``prompt`` and the ``parameters`` are JSON, which may be none."""
        more = f", {parameters}" if parameters else ""
        if way == "V1":
            body = f'{{"prompt": {prompt}, "parameters": {{"max_tokens": 1{more}}}}}'
            return self.post(f"/v1/models/{LLAMA}/inference", body)
        if way == "V2":
            body = f'{{"text_input": {prompt}, "parameters": {{"max_tokens": 1{more}}}}}'
            return self.post(f"/v2/models/{LLAMA}/generate", body)
        asked = f'"prompt": {prompt}'
        if way == "chat":
            asked = f'"messages": [{{"role": "user", "content": {prompt}}}]'
        path = "/v1/chat/completions" if way == "chat" else "/v1/completions"
        return self.post(path, f'{{"model": "{LLAMA}", {asked}, "max_tokens": 1{more}}}')

    def embed(self, text: str) -> list[Answer]:
        """Ask the encoder in every way; ``text`` is JSON, which may be none."""
        given = f'{{"name": "text", "shape": [1], "datatype": "BYTES", "data": [{text}]}}'
        return [
            self.post(f"/v1/models/{BERT}/inference", f'{{"text": {text}}}'),
            self.post(f"/v2/models/{BERT}/infer", f'{{"inputs": [{given}]}}'),
            self.post("/v1/embeddings", f'{{"model": "{BERT}", "input": {text}}}'),
        ]

    def good(self) -> list[Any]:
        return [self.server.infer(model, request).json["result"] for model, request in GOOD]

    def unharmed(self) -> None:
        """Nothing is another than it was before."""
        assert self.server.get("/v2/health/ready").json == {"ready": True, "reason": None}
        assert self.good() == self.answers
        assert [self.server.worker(model) for model in (LLAMA, BERT)] == self.workers
        assert all(map(alive, self.workers))
        assert self.server.metric("mlos_restarts_total") == 0


@pytest.fixture(scope="module")
def kept(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("poison")
    store = Store(folder / "store")
    small.install(BERT, store)
    tiny_llama().install(store)
    with running(folder) as server:
        served = Served(server, [], [])
        served.answers = served.good()
        served.workers = [server.worker(model) for model in (LLAMA, BERT)]
        yield served


@pytest.fixture
def served(kept: Served) -> Iterator[Served]:
    """It, seen to be unharmed after each test."""
    yield kept
    kept.unharmed()


def field(answer: Answer) -> str:
    """The field that a refusal names, as each protocol tells it."""
    told = answer.json
    error = told["error"] if isinstance(told["error"], dict) else told
    return str(error.get("field", error.get("param"))).removeprefix("parameters.")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "-1"),
        ("temperature", "1e-300"),
        ("temperature", '"hot"'),
        ("top_p", "0"),
        ("top_p", "1.5"),
        ("top_k", "-1"),
        ("min_p", "1e308"),
        ("seed", "-1"),
        ("repetition_penalty", "0"),
        ("presence_penalty", "2.5"),
        ("stop", '""'),
        ("stop", json.dumps(["x" * 257])),
        ("stop", json.dumps(["x"] * 10_000)),
        # Whatever would be compiled or searched by is not taken at all.
        ("grammar", json.dumps("root ::= root root")),
        ("guided_regex", '"(a+)+$"'),
        ("regex", json.dumps("(x+x+)+y" * 10_000)),
        ("response_format", '{"type": "json_schema", "json_schema": {"schema": {"pattern": "(a+)+$"}}}'),
        ("logit_bias", '{"1": 100}'),
        ("x" * 100_000, "1"),
        ("a\\u0000b", "1"),
    ],
    ids=lambda each: each[:30],
)
def test_a_parameter_out_of_bounds_is_a_400_that_names_it(served: Served, name: str, value: str) -> None:
    for way in WAYS:
        answer = served.write(way, '"The ship"', f'"{name}": {value}')
        assert answer.status == 400, answer.body
        assert json.loads(f'"{name}"').startswith(field(answer)[:100])
        assert len(answer.body) < 20_000


@pytest.mark.parametrize("count", ["0", "-1", "1.5", "true"])
def test_tokens_that_cannot_be_counted_are_a_400(served: Served, count: str) -> None:
    requests = {
        f"/v1/models/{LLAMA}/inference": f'{{"prompt": "a", "parameters": {{"max_tokens": {count}}}}}',
        f"/v2/models/{LLAMA}/generate": f'{{"text_input": "a", "max_tokens": {count}}}',
        "/v1/completions": f'{{"model": "{LLAMA}", "prompt": "a", "max_tokens": {count}}}',
    }
    for path, body in requests.items():
        answer = served.post(path, body)
        assert (answer.status, field(answer)) == (400, "max_tokens"), answer.body


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", "9" * 5000])
def test_a_number_that_is_none_is_a_400_of_the_body(served: Served, value: str) -> None:
    for way in WAYS:
        answer = served.write(way, '"The ship"', f'"temperature": {value}')
        assert (answer.status, field(answer)) == (400, "body"), answer.body


@pytest.mark.parametrize(
    "text",
    [
        *("", " \t\r\n ", "\0", "a\0b", "\ufeff", "\u202e\u2066", "\U0010ffff", "\u0301" * 400),
        # Control tokens of other models, halves of its own, and what only looks like one.
        *("<|im_end|>", "[INST] <<SYS>>", "</", "s>", "< /s>", "[MASK", "[CLS] [SEP] [PAD] [UNK]", "[MASK]"),
    ],
)
def test_a_strange_text_is_a_text(served: Served, text: str) -> None:
    for way in WAYS:
        assert served.write(way, json.dumps(text)).status == 200
    for answer in served.embed(json.dumps(text)):
        assert answer.status == 200, answer.body


@pytest.mark.parametrize("text", ["</s>", "<s>", "a <unk> b", "<s>[INST] x [/INST]</s>", "<</s></s>"])
def test_a_control_token_is_refused_where_it_would_count_as_one(served: Served, text: str) -> None:
    fields = {"V1": "prompt", "V2": "prompt", "completions": "prompt", "chat": "messages[0].content"}
    for way in WAYS:
        answer = served.write(way, json.dumps(text))
        assert (answer.status, field(answer)) == (400, fields[way]), answer.body
    for answer in served.embed(json.dumps(text)):  # to whom it is text
        assert answer.status == 200
    halves = json.dumps([{"type": "text", "text": half} for half in (text[:3], text[3:])])
    assert served.write("chat", halves).status == 400
    meant = '"special_tokens": true'  # a prompt may say so
    assert [served.write(way, json.dumps(text), meant).status for way in WAYS[:3]] == [200] * 3


@pytest.mark.parametrize(
    "text", [b'"\\ud800"', b'"\\udfff\\ud800"', b'"\xed\xa0\x80"', b'"\xff"', b"null", b"5"]
)
def test_what_is_no_text_is_a_400(served: Served, text: bytes) -> None:
    as_it_is = text.decode("latin-1")
    bodies = [
        (f"/v1/models/{LLAMA}/inference", f'{{"prompt": {as_it_is}}}'),
        (f"/v2/models/{LLAMA}/generate", f'{{"text_input": {as_it_is}}}'),
        ("/v1/completions", f'{{"model": "{LLAMA}", "prompt": {as_it_is}}}'),
        (f"/v1/models/{BERT}/inference", f'{{"text": {as_it_is}}}'),
        ("/v1/embeddings", f'{{"model": "{BERT}", "input": {as_it_is}}}'),
    ]
    for path, body in bodies:
        assert served.post(path, body.encode("latin-1")).status == 400, path


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ({"text": "[MASK]", "parameters": {"top_k": 0}}, 400, "top_k"),
        ({"text": "[MASK]", "parameters": {"top_k": 10**9}}, 400, "top_k"),
        ({"text": "[MASK] " * 300, "parameters": {"top_k": 5}}, 413, "top_k"),
        ({"text": "mlos " * 600 + "[MASK]"}, 400, "text"),
        ({"texts": ["[MASK]", "none"]}, 400, "texts[1]"),
        ({"text": "a", "parameters": {"normalize": "yes"}}, 400, "normalize"),
        ({"text": "a", "task": "\0"}, 404, "task"),
        ({"text": "a" * 9001}, 413, "text"),
    ],
)
def test_what_an_encoder_cannot_answer_is_refused(
    served: Served, request_: Any, status: int, named: str
) -> None:
    answer = served.server.infer(BERT, request_)
    assert (answer.status, field(answer)) == (status, named), answer.body


@pytest.mark.parametrize("number", [-1, 32_000, 2**62])
def test_a_token_that_there_is_not_is_a_400(served: Served, number: int) -> None:
    for model, more in ((LLAMA, {}), (BERT, {"attention_mask": [[1]], "token_type_ids": [[0]]})):
        answer = served.server.infer(model, {"inputs": {"input_ids": [[number]], **more}})
        assert answer.status == 400, answer.body


@pytest.mark.parametrize("depth", [70, 400, 600, 900, 5000, 100_000])
def test_what_is_nested_too_deeply_is_a_400_at_every_depth(served: Served, depth: int) -> None:
    nested = "[" * depth + "]" * depth
    for answer in (*(served.write(way, '"a"', f'"stop": {nested}') for way in WAYS), *served.embed(nested)):
        assert answer.status == 400, answer.body


def test_more_inputs_than_any_model_has_are_refused_before_they_are_compared(served: Served) -> None:
    inputs = [{"name": str(number), "shape": [], "datatype": "INT8", "data": [1]} for number in range(20_000)]
    answer = served.post(f"/v2/models/{BERT}/infer", {"inputs": inputs})
    assert (answer.status, field(answer)) == (400, "inputs"), answer.body


@pytest.mark.parametrize("shape", [[10**9, 0], [0, 10**9], [0, 2**62]], ids=str)
def test_an_empty_tensor_is_not_as_wide_as_it_likes(served: Served, shape: list[int]) -> None:
    for model, names in ((LLAMA, []), (BERT, ["attention_mask", "token_type_ids"])):
        inputs = [
            {"name": name, "shape": shape, "datatype": "INT64", "data": []} for name in ("input_ids", *names)
        ]
        answer = served.post(f"/v2/models/{model}/infer", {"inputs": inputs})
        assert (answer.status, field(answer)) == (400, "inputs.input_ids"), answer.body


def test_more_texts_than_tokens_are_taken_are_refused_before_they_are_tokenised(served: Served) -> None:
    texts = [""] * 16_385
    given = {"name": "texts", "shape": [len(texts)], "datatype": "BYTES", "data": texts}
    for path, body, named in (
        (f"/v1/models/{BERT}/inference", {"texts": texts}, "texts"),
        (f"/v2/models/{BERT}/infer", {"inputs": [given]}, "texts"),
        ("/v1/embeddings", {"model": BERT, "input": texts}, "input"),
    ):
        answer = served.post(path, body)
        assert (answer.status, field(answer)) == (413, named), answer.body
        assert "16384 texts" in answer.body.decode()


@pytest.mark.parametrize(("name", "value"), [("seed", 2**64), ("top_k", -(2**70)), ("n_best", 10**30)])
def test_a_number_that_no_message_carries_is_named_too(served: Served, name: str, value: int) -> None:
    for way in WAYS:
        answer = served.write(way, '"The ship"', f'"{name}": {value}')
        assert (answer.status, field(answer)) == (400, name), answer.body


def test_poison_beside_good_requests_costs_them_nothing(served: Served) -> None:
    poison = [
        *((LLAMA, {"prompt": text}) for text in ("</s>", "a " * 4000)),
        (LLAMA, {"prompt": "The ship", "parameters": {"temperature": -1}}),
        (LLAMA, {"inputs": {"input_ids": [[32_000]]}}),
        (BERT, {"text": "[MASK] " * 300, "parameters": {"top_k": 5}}),
        (BERT, {"inputs": {"input_ids": [[10**6]], "attention_mask": [[1]], "token_type_ids": [[0]]}}),
    ]
    with ThreadPoolExecutor(8) as pool:
        bad = [pool.submit(served.server.infer, *each) for each in poison * 5]
        good = [pool.submit(served.good) for _ in range(10)]
        ready = [pool.submit(served.server.get, "/v2/health/ready") for _ in range(10)]
    assert {each.result().status for each in bad} == {400, 413}
    assert all(each.result() == served.answers for each in good)
    assert {each.result().status for each in ready} == {200}
