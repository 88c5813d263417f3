"""Answers of an encoder-decoder that are written together: each as if alone, none behind another (F25)."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from tests.core.conftest import Start
from tests.core.test_generations import MANY, Run, Worker, answer_of, text_of, with_worker
from tests.small import Small
from tests.tiny_t5 import TinyT5, tiny_t5

from mlos.accel import Job, WorkerChannel
from mlos.core.answering import Model
from mlos.core.worker_protocol import Answer
from mlos.engines import Engine
from mlos.errors import DeadlineError, InvalidInputError
from mlos.store import Store
from mlos.tasks import Tasks, tasks_of

FEW = 12
TEXTS = [f"The captain counted {'many ' * number}boats." for number in range(8)]


def asked(text: str, count: int = FEW, *, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    return {"request": {"text": text, "stream": stream, "parameters": {"max_tokens": count, **parameters}}}


@pytest.fixture(scope="module")
def made(small: Small) -> TinyT5:
    return tiny_t5(small)


@pytest.fixture(scope="module")
def engine(made: TinyT5) -> Engine:
    return made.opened()


@pytest.fixture(scope="module")
def tasks(made: TinyT5) -> Tasks:
    return tasks_of(made.folder, made.manifest)


@pytest.fixture(scope="module")
def run(made: TinyT5, engine: Engine, tasks: Tasks) -> Run:
    return partial(with_worker, made.manifest, engine, tasks)


@pytest.fixture(scope="module")
def expected(run: Run) -> list[Answer]:
    """What a worker answers that writes one at a time."""
    found: list[Answer] = []

    async def work(worker: Worker) -> None:
        for text in TEXTS:
            found.append(await worker.answer(asked(text)))
            assert (found[-1].batch, found[-1].steps) == (1, {})

    run(work, 1)
    return found


def test_eight_at_once_are_each_answered_as_alone(run: Run, expected: list[Answer]) -> None:
    async def work(worker: Worker) -> None:
        tickets = [worker.submit(asked(text, stream=True)) for text in TEXTS]
        streamed = ["".join([part["text"] async for part in ticket.parts()]) for ticket in tickets]
        answers = [answer_of((await ticket.outcome).body) for ticket in tickets]
        assert [answer.result for answer in answers] == [answer.result for answer in expected]
        assert streamed == [text_of(answer) for answer in expected]
        assert (
            max(max(answer.steps) for answer in answers) >= 7
        )  # the first may have begun before the others came
        for answer, alone in zip(answers, expected, strict=True):
            assert answer.tokens == alone.tokens
            assert answer.finish_reason == alone.finish_reason == "length"
            assert sum(answer.steps.values()) == FEW

    run(work, 8)


def test_a_short_answer_does_not_wait_for_a_long_one(run: Run, expected: list[Answer]) -> None:
    async def work(worker: Worker) -> None:
        long = await worker.begun(asked(TEXTS[0], MANY, stream=True))
        for text, alone in list(zip(TEXTS, expected, strict=True))[1:4]:
            answer = await worker.answer(asked(text))
            assert answer.result == alone.result
            assert set(answer.steps) == {2}
        assert not long.outcome.done()
        worker.front.cancel(long)
        await worker.idle()

    run(work, 8)


def test_beams_and_several_texts_wait_until_nothing_is_written(run: Run, expected: list[Answer]) -> None:
    several = {"request": {"texts": TEXTS[:3], "parameters": {"max_tokens": FEW}}}
    beams = asked(TEXTS[0], num_beams=3)
    alone: list[bytes] = []

    async def singly(worker: Worker) -> None:
        alone.extend([bytes((await worker.answer(body)).result) for body in (several, beams)])

    async def beside(worker: Worker) -> None:
        stream = await worker.begun(asked(TEXTS[0], MANY, stream=True))
        waiting = [worker.submit(several), worker.submit(beams)]
        while worker.front.claimed < 2:  # the second may have to wait at the front
            await asyncio.sleep(0.005)
        assert not any(ticket.outcome.done() for ticket in waiting)
        worker.front.cancel(stream)
        assert [answer_of((await ticket.outcome).body).result for ticket in waiting] == alone
        await worker.idle()

    run(singly, 1)
    assert msgspec.json.decode(alone[0]) == [msgspec.json.decode(answer.result) for answer in expected[:3]]
    run(beside, 8)


def test_what_is_wrong_with_one_costs_the_others_nothing(run: Run, expected: list[Answer]) -> None:
    async def work(worker: Worker) -> None:
        stream = await worker.begun(asked(TEXTS[7], MANY, stream=True))
        bad = worker.submit(asked(TEXTS[0], top_z=1))
        good = [worker.submit(asked(text)) for text in TEXTS[:3]]
        with pytest.raises(InvalidInputError):
            await bad.outcome
        answers = [answer_of((await ticket.outcome).body).result for ticket in good]
        assert answers == [answer.result for answer in expected[:3]]
        assert not stream.outcome.done()
        worker.front.cancel(stream)
        await worker.idle()

    run(work, 8)


def test_a_model_that_answers_by_beams_claims_one_request_at_a_time(made: TinyT5, engine: Engine) -> None:
    """What it claimed beyond would wait behind it, and not in its turn."""
    facts = made.manifest.preprocessing["text2text-generation"]
    said = {"text2text-generation": facts | {"generation": {"num_beams": 2}}}
    manifest = made.manifest.model_copy(update={"preprocessing": said})
    rooms = [
        Model(tasks_of(made.folder, each), engine, each, sequences=8).room for each in (made.manifest, manifest)
    ]
    assert rooms == [8, 1]


def test_beams_are_claimed_one_at_a_time_once_they_come(run: Run) -> None:
    async def work(worker: Worker) -> None:
        await worker.answer(asked(TEXTS[0], num_beams=2))
        assert worker.model.room == 1
        await worker.answer(asked(TEXTS[0]))
        await worker.idle()
        assert worker.model.room == 8

    run(work, 8)


class Deadlines:
    """A worker's channel on which nobody waits any more for the jobs in ``gone``, from the second look on."""

    def __init__(self, gone: set[int]) -> None:
        self._gone, self._looks = gone, 0
        self.told: dict[int, Any] = {}

    def cancelled(self, job: Job) -> bool:
        self._looks += job.id in self._gone
        return job.id in self._gone and self._looks > 1

    def complete(self, job: Job, outcome: Any, *, claim: int = 0) -> None:
        self.told[job.id] = outcome

    def emit(self, job: Job, body: Any) -> None:
        raise AssertionError("nobody asked for parts")


def test_who_is_late_behind_another_is_told_so_meanwhile(made: TinyT5, engine: Engine, tasks: Tasks) -> None:
    """Else the front would take the worker for hung, and end it with all that it has."""
    model = Model(tasks, engine, made.manifest, sequences=8)
    jobs = [
        Job(number, asked(TEXTS[number], num_beams=2), deadline=time.monotonic() + 60, sent=0.0)
        for number in range(3)
    ]
    channel = Deadlines({1})
    outcomes = {job.id: outcome for job, outcome in model.answers(jobs, cast("WorkerChannel", channel))}
    assert isinstance(channel.told[1], DeadlineError)
    assert (set(outcomes), set(channel.told)) == ({0, 2}, {1})
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())


def test_a_server_writes_them_together(small: Small, store: Store, start: Start, home: Path) -> None:
    name = small.install("t5", store).name
    server = start("--model", name)
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)
    bodies = [asked(text, 40)["request"] for text in TEXTS]
    alone = [server.infer(name, body).json["result"] for body in bodies]
    with ThreadPoolExecutor(8) as pool:
        together = [answer.json["result"] for answer in pool.map(lambda body: server.infer(name, body), bodies)]
    assert together == alone
    written = server.metric("mlos_step_sequences_count", model=name)
    shared = written - server.metric("mlos_step_sequences_bucket", model=name, le="1.0")
    assert written == sum(result["usage"]["completion_tokens"] for result in (*alone, *together))
    assert shared > 0
