"""Generations share a worker: each answered as if alone, none held up behind another (F15, F16, F25)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.core.conftest import Server, Start
from tests.tiny_llama import TinyLlama, clear, tiny_llama

from mlos.accel import Ticket
from mlos.accel.userspace import UserspaceFront, UserspaceWorker
from mlos.core.answering import Model
from mlos.core.worker import serve
from mlos.core.worker_protocol import Answer
from mlos.engines import Engine
from mlos.engines.llama_cpp import LlamaCppEngine
from mlos.engines.llama_cpp_together import Together
from mlos.errors import (
    DeadlineError,
    InvalidInputError,
    MlosError,
    PayloadTooLargeError,
    UnavailableError,
    WorkerError,
)
from mlos.model import Manifest
from mlos.store import Package, Store
from mlos.tasks import LanguageTask, Tasks, tasks_of

GONE = UnavailableError("the worker is gone")
FEW, MANY = 5, 1800
"""Tokens of a short answer, and of one that outlasts everything else of a test."""


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


@pytest.fixture(scope="module")
def engine(llama: TinyLlama) -> LlamaCppEngine:
    return LlamaCppEngine.open(llama.folder, llama.artifacts["Q4_K_M"], 1)


@pytest.fixture(scope="module")
def manifest(llama: TinyLlama) -> Manifest:
    return llama.manifest(llama.artifacts["Q4_K_M"])


@pytest.fixture(scope="module")
def tasks(llama: TinyLlama, manifest: Manifest) -> Tasks:
    return tasks_of(llama.folder, manifest)


@pytest.fixture(scope="module")
def prompts(engine: LlamaCppEngine, tasks: Tasks) -> list[str]:
    """Eight prompts whose short greedy answers have no near tie."""
    task = tasks._tasks["text-generation"]
    assert isinstance(task, LanguageTask)
    found = []
    for number in range(200):
        prompt = f"The captain counted {number} boats"
        if len(clear(engine, task.encode(prompt, control=False, begin=True), FEW, margin=0.1)) == FEW:
            found.append(prompt)
        if len(found) == 8:
            return found
    raise AssertionError("there are too many near ties")


def asked(prompt: str, count: int = FEW, *, stream: bool = False, **parameters: Any) -> dict[str, Any]:
    return {"request": {"prompt": prompt, "stream": stream, "parameters": {"max_tokens": count, **parameters}}}


class Worker:
    """The worker's loop in a thread of this process, at the other end of a real channel."""

    def __init__(self, manifest: Manifest, engine: Engine, tasks: Tasks, sequences: int) -> None:
        self.front = UserspaceFront(self.broken)
        self.model = Model(tasks, engine, manifest, sequences=sequences)
        self.thread = threading.Thread(target=self.run, args=(UserspaceWorker(self.front.connect()),))
        self.thread.start()

    def run(self, channel: UserspaceWorker) -> None:
        serve(channel, self.model)
        channel.close()

    def broken(self, place: int, reason: str) -> None:
        raise AssertionError(reason)

    def submit(self, body: dict[str, Any], seconds: float = 50.0) -> Ticket:
        return self.front.submit(body, deadline=asyncio.get_running_loop().time() + seconds)

    async def answer(self, body: dict[str, Any]) -> Answer:
        return answer_of((await self.submit(body).outcome).body)

    async def begun(self, body: dict[str, Any], seconds: float = 50.0) -> Ticket:
        """A stream whose first part has come."""
        ticket = self.submit(body, seconds)
        async for _ in ticket.parts():
            return ticket
        raise AssertionError(ticket.outcome)

    async def idle(self) -> None:
        while self.front.claimed or self.front.waiting:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self.front.close(GONE)
        self.thread.join()


def answer_of(body: Any) -> Answer:
    return msgspec.convert(body, Answer)


def text_of(answer: Answer) -> str:
    return str(msgspec.json.decode(answer.result)["text"])


Work = Callable[[Worker], Coroutine[Any, Any, None]]
Run = Callable[[Work, int], None]


def with_worker(manifest: Manifest, engine: Engine, tasks: Tasks, work: Work, sequences: int) -> None:
    """Do ``work`` with a worker of its own, in bounded time."""

    async def main() -> None:
        worker = Worker(manifest, engine, tasks, sequences)
        try:
            await asyncio.wait_for(work(worker), 120)
        finally:
            worker.close()

    asyncio.run(main())


@pytest.fixture
def run(manifest: Manifest, engine: LlamaCppEngine, tasks: Tasks) -> Run:
    return partial(with_worker, manifest, engine, tasks)


@pytest.fixture(scope="module")
def expected(manifest: Manifest, engine: LlamaCppEngine, tasks: Tasks, prompts: list[str]) -> list[str]:
    """What a worker writes that writes one at a time."""
    found: list[str] = []

    async def main() -> None:
        worker = Worker(manifest, engine, tasks, 1)
        for prompt in prompts:
            answer = await worker.answer(asked(prompt))
            assert (answer.batch, answer.steps) == (1, {})
            found.append(text_of(answer))
        worker.close()

    asyncio.run(main())
    return found


def test_eight_at_once_are_each_answered_as_alone(run: Run, prompts: list[str], expected: list[str]) -> None:
    async def work(worker: Worker) -> None:
        tickets = [worker.submit(asked(prompt, stream=True)) for prompt in prompts]
        streamed = ["".join([part["text"] async for part in ticket.parts()]) for ticket in tickets]
        answers = [answer_of((await ticket.outcome).body) for ticket in tickets]
        assert [text_of(answer) for answer in answers] == expected
        assert streamed == expected
        assert max(max(answer.steps) for answer in answers) == 8
        for answer in answers:
            assert answer.tokens["completion"] == sum(answer.steps.values()) == FEW
            assert answer.batch > 1

    run(work, 8)


def test_a_short_answer_does_not_wait_for_long_ones(run: Run, prompts: list[str], expected: list[str]) -> None:
    async def work(worker: Worker) -> None:
        long = [await worker.begun(asked(prompt, MANY, stream=True)) for prompt in prompts[:2]]
        for prompt, text in list(zip(prompts, expected, strict=True))[2:5]:
            answer = await worker.answer(asked(prompt))
            assert text_of(answer) == text
            assert set(answer.steps) == {3}
        assert not any(ticket.outcome.done() for ticket in long)
        for ticket in long:
            worker.front.cancel(ticket)
        await worker.idle()

    run(work, 8)


def test_a_long_prompt_holds_up_no_stream(run: Run, prompts: list[str]) -> None:
    async def work(worker: Worker) -> None:
        stream = await worker.begun(asked(prompts[0], MANY, stream=True))
        late = worker.submit(asked("word " * 900, 2, stream=True))
        parts = 0
        async for _ in stream.parts():
            parts += 1
            if late.outcome.done():
                break
        assert parts > 900 // 40  # one for every piece of the prompt that was read beside it
        assert answer_of((await late.outcome).body).tokens["completion"] == 2
        worker.front.cancel(stream)
        await worker.idle()

    run(work, 8)


def test_who_leaves_in_the_middle_frees_the_place(run: Run, prompts: list[str], expected: list[str]) -> None:
    async def work(worker: Worker) -> None:
        leaving, staying = [await worker.begun(asked(prompt, MANY, stream=True)) for prompt in prompts[:2]]
        queued = worker.submit(asked(prompts[2]))
        await asyncio.sleep(0.2)
        assert (worker.front.waiting, worker.front.claimed) == (1, 2)  # both places are taken
        worker.front.cancel(leaving)
        assert text_of(answer_of((await queued.outcome).body)) == expected[2]
        assert not staying.outcome.done()
        worker.front.cancel(staying)
        await worker.idle()

    run(work, 2)


def test_a_deadline_frees_the_place_too(run: Run, prompts: list[str], expected: list[str]) -> None:
    async def work(worker: Worker) -> None:
        staying = await worker.begun(asked(prompts[0], MANY, stream=True))
        late = worker.submit(asked(prompts[1], MANY), seconds=1.5)
        with pytest.raises(DeadlineError):
            await late.outcome
        while worker.front.claimed > 1:
            await asyncio.sleep(0.005)
        assert text_of(await worker.answer(asked(prompts[2]))) == expected[2]
        assert not staying.outcome.done()
        worker.front.cancel(staying)
        await worker.idle()

    run(work, 2)


def test_what_is_wrong_with_one_costs_the_others_nothing(
    run: Run, engine: LlamaCppEngine, prompts: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker) -> None:
        generations = worker.model._generations
        assert generations is not None
        places = generations._places
        assert isinstance(places, Together)
        join = places.join

        def poisoned(prompt: list[int], *more: Any) -> int | None:
            if len(prompt) > 500:
                raise ZeroDivisionError("a bug that this prompt finds")
            return join(prompt, *more)

        monkeypatch.setattr(places, "join", poisoned)
        wrong: list[tuple[dict[str, Any], type[MlosError]]] = [
            (asked("word " * 3000), PayloadTooLargeError),
            (asked(prompts[0], top_z=1), InvalidInputError),
            (asked("word " * 600), WorkerError),
            ({"request": {"prompt": "x", "task": "divination"}}, MlosError),
        ]
        stream = await worker.begun(asked(prompts[7], MANY, stream=True))
        bad = [(worker.submit(body), kind) for body, kind in wrong]
        good = [worker.submit(asked(prompt)) for prompt in prompts[:3]]
        for ticket, kind in bad:
            with pytest.raises(kind):
                await ticket.outcome
        assert [text_of(answer_of((await ticket.outcome).body)) for ticket in good] == expected[:3]
        assert not stream.outcome.done()
        worker.front.cancel(stream)
        await worker.idle()

    run(work, 8)


def test_stop_strings_usage_and_seeds_are_as_alone(run: Run, prompts: list[str], expected: list[str]) -> None:
    stop = expected[0][2:5]
    seeded: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "seed": 11}

    async def work(worker: Worker) -> None:
        one = await worker.answer(asked(prompts[0], stop=stop))
        sampled = await worker.answer(asked(prompts[1], 2, **seeded))
        crowd = [
            await worker.begun(asked(prompt, MANY, stream=True, temperature=1.5)) for prompt in prompts[2:5]
        ]
        beside = await worker.answer(asked(prompts[0], stop=stop))
        assert beside.result == one.result
        assert msgspec.json.decode(one.result)["text"] == expected[0].partition(stop)[0]
        assert msgspec.json.decode(one.result)["finish_reason"] == "stop"
        assert (await worker.answer(asked(prompts[1], 2, **seeded))).result == sampled.result
        for ticket in crowd:
            worker.front.cancel(ticket)
        await worker.idle()

    run(work, 8)


def test_what_is_no_generation_waits_until_nothing_is_written(run: Run, prompts: list[str]) -> None:
    tensors = {"request": {"inputs": {"input_ids": [[1, 2, 3]]}}}

    async def work(worker: Worker) -> None:
        stream = await worker.begun(asked(prompts[0], MANY, stream=True))
        waiting, given_up = worker.submit(tensors), worker.submit(tensors)
        while worker.front.claimed < 2:
            await asyncio.sleep(0.005)
        later = worker.submit(asked(prompts[1]))  # behind it, in its turn
        worker.front.cancel(given_up)
        await asyncio.sleep(0.2)
        assert not waiting.outcome.done()
        assert not later.outcome.done()
        worker.front.cancel(stream)
        logits = msgspec.json.decode(answer_of((await waiting.outcome).body).result)
        assert np.array(logits["logits"]).shape == (1, 3, 32000)
        await later.outcome
        await worker.idle()

    run(work, 8)


@pytest.fixture
def package(llama: TinyLlama, store: Store) -> Package:
    """The small language model, installed."""
    return llama.install(store)


@pytest.mark.parametrize("sequences", [8, 1])
def test_a_server_continues_as_many_together_as_it_is_told(
    package: Package, start: Start, home: Path, prompts: list[str], expected: list[str], sequences: int
) -> None:
    (home / "config.toml").write_text(f"sequences = {sequences}\n")
    server: Server = start("--model", package.name)
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: server.infer(package.name, asked(prompt)["request"]), prompts))
    assert [answer.json["result"]["text"] for answer in answers] == expected
    written = server.metric("mlos_step_sequences_count", model=package.name)
    shared = written - server.metric("mlos_step_sequences_bucket", model=package.name, le="1.0")
    assert (written, shared > 0) == ((8 * FEW, True) if sequences > 1 else (0, False))
    assert server.metric("mlos_tokens_total", model=package.name, kind="completion") == 8 * FEW
