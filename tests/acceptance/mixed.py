"""Many clients with requests of every kind at once, each answer held to what its request is answered alone."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec
from tests.acceptance.conftest import Served
from tests.tiny_llama import clear

from mlos.engines import LanguageModel, open_model, vocabulary_of
from mlos.model import InferenceRequest
from mlos.parity import compare_result, tolerance_of
from mlos.parity.record import Case
from mlos.store import Package
from mlos.tasks import Limits, tasks_of

CLIENTS = 16
MARGIN = 0.1
"""Of two logits that lie closer together the last bits may decide, where they spread over 1.7."""


@dataclass
class Tally:
    """What became of the requests: answers by model, and everything that was not as it should be."""

    answered: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Question:
    """A request, and whether an answer is its own."""

    model: str
    body: bytes
    differs: Callable[[Any], str | None]


def questions(served: Served, models: list[str]) -> list[Question]:
    """The golden requests of ``models``, and raw tensors; generations are held to what they give alone."""
    made = []
    for model in models:
        tolerance = tolerance_of(served.package(model).manifest.artifact, "fp32-wide")
        for case in served.cases(model):
            body = msgspec.json.encode(case.request)
            if case.task in ("chat", "text-generation"):
                differs = _goes_on_as_alone(served.package(model), case)
            elif case.task == "text2text-generation":
                differs = _is_as_alone(case, served.ask(model, case.request).json()["result"])
            else:
                differs = _is_the_frameworks(case, tolerance)
            made.append(Question(model, body, differs))
        made.append(_tensors(served, model))
    return made


def _is_the_frameworks(case: Case, tolerance: Any) -> Callable[[Any], str | None]:
    return lambda result: str(found) if (found := compare_result(case, result, tolerance)) else None


def _is_as_alone(case: Case, alone: Any) -> Callable[[Any], str | None]:
    return lambda result: None if result == alone else f"{case.name}: {result} instead of {alone}"


def _goes_on_as_alone(package: Package, case: Case) -> Callable[[Any], str | None]:
    """A text that is written beside others is the one written alone, up to the first near tie.

    There the last bits decide, which depend on what is computed together; see decision 15.
    """
    manifest = package.manifest
    task = tasks_of(package.folder, manifest, Limits()).choose(case.request)
    prompt = task.preprocess(case.request).inputs["input_ids"][0].tolist()
    engine = open_model(package.folder, manifest.artifact, 1)
    assert isinstance(engine, LanguageModel)
    tokens = clear(engine, prompt, case.request.parameters["max_tokens"], MARGIN)
    assert tokens, f"{case.name}: the first token is a near tie: choose another request"
    vocabulary = vocabulary_of(package.folder, manifest.artifact)
    start = b"".join(vocabulary.piece(token) for token in tokens).decode(errors="ignore")

    def differs(result: Any) -> str | None:
        right = result["text"].startswith(start) and result["usage"]["prompt_tokens"] == len(prompt)
        return None if right else f"{case.name}: {result} does not begin with {start!r}"

    return differs


def _tensors(served: Served, model: str) -> Question:
    """Tensors of a request's own: the answer's shape tells whose it is, and its values stay the same."""
    case = served.cases(model)[0]
    name = next(iter(case.outputs))
    inputs = {tensor: value.tolist() for tensor, value in case.inputs.items()}
    request = InferenceRequest(inputs=inputs, outputs=[name])
    alone = served.ask(model, request).json()["result"][name]

    def differs(result: Any) -> str | None:
        worst = max(abs(a - b) for a, b in zip(_flat(result[name]), _flat(alone), strict=True))
        return None if worst < 1e-2 else f"{model}: tensors differ by {worst:g}"

    return Question(model, msgspec.json.encode(request), differs)


def _flat(value: Any) -> list[float]:
    if not isinstance(value, list):
        return [value]
    return [number for each in value for number in _flat(each)]


def run(
    served: Served, asked: list[Question], *, requests: int | None = None, seconds: float | None = None
) -> Tally:
    """Sixteen clients ask at random until so many requests are asked or so many seconds have passed."""
    tally, lock = Tally(), threading.Lock()
    end = time.monotonic() + (seconds if seconds is not None else 600.0)
    left = [requests if requests is not None else 1 << 60]

    def work(number: int) -> None:
        chance = random.Random(number)
        with httpx2.Client(timeout=120, trust_env=False) as client:
            while time.monotonic() < end:
                with lock:
                    if left[0] == 0:
                        return
                    left[0] -= 1
                question = chance.choice(asked)
                answer = client.post(served.address(question.model), content=question.body)
                if answer.status_code != 200:
                    with lock:
                        tally.refused[question.model, answer.status_code] += 1
                    continue
                difference = question.differs(answer.json()["result"])
                with lock:
                    tally.answered[question.model] += 1
                    if difference:
                        tally.wrong.append(difference)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally
