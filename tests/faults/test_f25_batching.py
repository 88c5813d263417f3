"""F25: what is computed together is answered as alone, and nobody is told a word of another's request.

What goes together, and how its rows come apart, is in ``tests/tasks/test_batching.py``; generations that share
their steps are in ``tests/core/test_generations.py``; the memory of a crowd that is answered in batches is F03.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.core import packages, records
from tests.core.conftest import Server, Start
from tests.small import Small
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from mlos.accel import Job
from mlos.core.answering import Model
from mlos.core.worker_protocol import Answer
from mlos.engines import Engine, open_model
from mlos.errors import DeadlineError, InvalidInputError
from mlos.model import InferenceRequest, TensorSpec
from mlos.parity import Case, compare_result, tolerance_named
from mlos.store import Package, Store
from mlos.tasks import tasks_of
from mlos.tune import Batching

CANARIES = 5000
"""Words of the echoing model, dealt out in turn: those of a request are in none of the hundred before it."""
MOST = 5


@pytest.fixture
def echo(store: Store) -> Package:
    """A model that answers each token with its number and one: to see an answer is to see the request."""
    inputs = [
        TensorSpec(name=name, dtype="INT64", shape=("batch", "sequence"))
        for name in ("input_ids", "attention_mask")
    ]
    nodes = [
        helper.make_node("Add", ["input_ids", "attention_mask"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["numbers", "axes"], ["last_hidden_state"]),
    ]
    words = {"[PAD]": 0} | {f"w{number}": number for number in range(1, CANARIES + 1)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return packages.install(
        store,
        "echo",
        nodes,
        inputs,
        [TensorSpec(name="last_hidden_state", dtype="FP32", shape=("batch", "sequence", 1))],
        {"axes": np.array([2], np.int64)},
        tasks=("token-embeddings",),
        files={"tokenizer.json": tokenizer.to_str().encode(), "config.json": b'{"pad_token_id": 0}'},
        preprocessing={"token-embeddings": {"max_length": 64}},
    )


class Canaries:
    """Jobs whose every word is their own, one text or several; some are wrong, some are given up."""

    def __init__(self) -> None:
        self._chance, self._dealt = np.random.default_rng(25), itertools.cycle(range(1, CANARIES + 1))
        self.gone: set[int] = set()

    def cancelled(self, job: Job) -> bool:
        """All that a model asks of its channel."""
        return job.id in self.gone

    def claim(self) -> tuple[list[Job], list[Any]]:
        """What a worker claims at once, and what each has to be answered: its numbers, or an error."""
        jobs: list[Job] = []
        expected: list[Any] = []
        self.gone = set()
        for number in range(int(self._chance.integers(2, MOST + 1))):
            lengths = self._chance.integers(1, 9, size=self._chance.choice([1, 1, 1, 1, 3])).tolist()
            texts = [list(itertools.islice(self._dealt, length)) for length in lengths]
            request: dict[str, Any] = {"texts": [" ".join(f"w{word}" for word in text) for text in texts]}
            expected.append([[[float(word + 1)] for word in text] for text in texts])
            fate = self._chance.random()
            if fate < 0.03:
                request["parameters"], expected[-1] = {"colour": 1}, InvalidInputError
            elif fate < 0.06:
                self.gone.add(number)
            jobs.append(Job(number, {"request": request}, 0.0, 0.0))
        return jobs, expected


def batches(package: Package, engine: Engine) -> Iterator[tuple[float, int]]:
    """Of each claim: how many batches of several requests it became, and how many answers were wrong."""
    model = Model(tasks_of(package.folder, package.manifest), engine, package.manifest, MOST)
    canaries = Canaries()
    while True:
        jobs, expected = canaries.claim()
        computed, wrong = 0.0, 0
        for job, outcome in model.answers(jobs, canaries):  # type: ignore[arg-type]  # it has what is used
            if isinstance(outcome, Answer):
                computed += 1 / outcome.batch if outcome.batch > 1 else 0
                wrong += [each["embeddings"] for each in msgspec.json.decode(outcome.result)] != expected[
                    job.id
                ]
            elif isinstance(outcome, DeadlineError):
                wrong += job.id not in canaries.gone
            else:
                wrong += type(outcome) is not expected[job.id]
        yield computed, wrong


def test_in_ten_thousand_random_batches_each_canary_comes_home(echo: Package) -> None:
    computed = 0.0
    for several, wrong in batches(echo, open_model(echo.folder, echo.manifest.artifact, 1)):
        assert wrong == 0
        computed += several
        if computed >= 10_000:
            break


class Broken:
    """An engine that goes wrong as a batch could: it takes neighbours' rows, or those of the batch before."""

    name = version = "broken"

    def __init__(self, engine: Engine, spoil: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]) -> None:
        self._engine, self._spoil, self._before = engine, spoil, np.zeros((0, 0, 1))

    def run(self, inputs: Any, outputs: Any = None) -> Any:
        (states,) = self._engine.run(inputs, outputs).values()
        before, self._before = self._before, states
        return {"last_hidden_state": self._spoil(states, before)}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda states, before: np.roll(states, 1, axis=0),
        lambda states, before: before if before.shape == states.shape else states,
    ],
    ids=["neighbours", "leftovers"],
)
def test_canaries_that_are_another_s_are_seen(echo: Package, spoil: Any) -> None:
    engine: Any = Broken(open_model(echo.folder, echo.manifest.artifact, 1), spoil)
    assert sum(wrong for _, wrong in itertools.islice(batches(echo, engine), 300)) > 0


WORDS = ("river", "stone", "cloud", "letter", "engine", "garden", "winter", "music", "signal", "harbour")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_server_that_batches_answers_on_every_surface_as_alone(
    start: Start, store: Store, home: Path, small: Small, engine: str
) -> None:
    package = small.install("bert", store)
    records.write(home, package, engine, batching=Batching(most=8, longest=64))
    server, chance = start(), np.random.default_rng(7)

    def words() -> str:
        return " ".join(chance.choice(WORDS, size=int(chance.integers(1, 30))))

    asked: list[Callable[[], Any]] = []
    for _ in range(6):
        asked += [
            v1(server, text=words()),
            v1(server, texts=[words(), words()], parameters={"normalize": True}),
            v1(server, text=f"{words()} [MASK] {words()}"),
            v2(server, words()),
            openai(server, [words()]),
        ]
    # They come while the model is being loaded, so that they wait for its worker together.
    with ThreadPoolExecutor(len(asked)) as pool:
        together = [each.result() for each in [pool.submit(ask) for ask in asked]]
    runs = server.metric("mlos_executions_total", model="bert")
    assert runs < len(asked)
    for one, ask in zip(together, asked, strict=True):
        case = Case("alone", InferenceRequest(), "", {}, {}, ask())
        assert compare_result(case, one, tolerance_named("fp32")) is None
    assert server.metric("mlos_executions_total", model="bert") == runs + len(asked)
    assert server.infer("bert", {"text": "stone"}).json["engine"] == engine


def v1(server: Server, **request: Any) -> Callable[[], Any]:
    return lambda: server.infer("bert", request).json["result"]


def v2(server: Server, text: str) -> Callable[[], Any]:
    given = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [given]}).encode()
    return lambda: json.loads(
        server.request("POST", "/v2/models/bert/infer", body).json["outputs"][0]["data"][0]
    )


def openai(server: Server, texts: list[str]) -> Callable[[], Any]:
    body = json.dumps({"model": "bert", "input": texts}).encode()
    return lambda: [each["embedding"] for each in server.request("POST", "/v1/embeddings", body).json["data"]]
