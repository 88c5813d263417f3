"""What every channel promises, whichever backend carries it: one suite for all of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from mlos.accel import FrontChannel, Job, WorkerChannel
from mlos.accel.userspace import UserspaceFront, UserspaceWorker
from mlos.errors import DeadlineError, InvalidInputError, MlosError, UnavailableError

Backend = tuple[Callable[[Callable[[int, str], None]], FrontChannel], Callable[[int], WorkerChannel]]
GONE = UnavailableError("the worker is gone")


@pytest.fixture(params=["userspace"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return {"userspace": (UserspaceFront, UserspaceWorker)}[request.param]


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def unbroken(place: int, reason: str) -> None:
    raise AssertionError(reason)


class Serving:
    """A worker in a thread of this process, which answers each job with ``answer(job)``."""

    def __init__(
        self, worker: WorkerChannel, answer: Callable[[WorkerChannel, Job], Any], limit: int = 1
    ) -> None:
        self.worker, self.answer, self.limit = worker, answer, limit
        self.started: list[Any] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while jobs := self.worker.claim(self.limit):
            for job in jobs:
                self.started.append(job.body)
                self.worker.complete(job, self.answer(self.worker, job))
        self.worker.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def echo(worker: WorkerChannel, job: Job) -> Any:
    return job.body


@pytest.mark.parametrize("elements", [0, 3, 100_000])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_arrays_cross_unchanged_small_and_large(backend: Backend, dtype: str, elements: int) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        serving = Serving(backend[1](front.connect()), echo)
        array = (np.arange(elements) % 199).astype(dtype).reshape(-1, 1)
        body: dict[str, Any] = {"inputs": {"a": array, "b": array.T[:, ::2]}, "text": "ü", "n": [1, 2.5, None]}
        outcome = await front.submit(body, deadline=soon()).outcome
        front.close(GONE)
        serving.thread.join()
        for name, sent in body["inputs"].items():
            came = outcome.body["inputs"][name]
            assert came.dtype == sent.dtype
            assert came.shape == sent.shape
            np.testing.assert_array_equal(came, sent)
        assert outcome.body["text"] == "ü"
        assert outcome.body["n"] == [1, 2.5, None]
        assert outcome.submitted <= outcome.sent <= outcome.finished <= outcome.received

    run(main())


def test_received_arrays_cannot_be_written(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        serving = Serving(backend[1](front.connect()), echo)
        for elements in (4, 100_000):
            outcome = await front.submit(np.zeros(elements), deadline=soon()).outcome
            with pytest.raises(ValueError, match="read-only"):
                outcome.body[0] = 1
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_priority_then_deadline_then_arrival(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        now = time.monotonic()
        order = [("late", 0, 40), ("low", 5, 10), ("first", 0, 30), ("second", 0, 30), ("urgent", -1, 50)]
        tickets = [
            front.submit(name, deadline=now + seconds, priority=priority) for name, priority, seconds in order
        ]
        assert front.waiting == 5
        serving = Serving(backend[1](front.connect()), echo)
        await asyncio.gather(*(ticket.outcome for ticket in tickets))
        assert (front.waiting, front.claimed) == (0, 0)
        front.close(GONE)
        serving.thread.join()
        assert serving.started == ["urgent", "first", "second", "late", "low"]

    run(main())


def test_several_are_claimed_at_once(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        tickets = [front.submit(number, deadline=soon()) for number in range(10)]
        worker = backend[1](front.connect())
        claimed: list[int] = []

        def serve() -> None:
            while jobs := worker.claim(4):
                claimed.append(len(jobs))
                for job in jobs:
                    worker.complete(job, job.body)
            worker.close()

        thread = threading.Thread(target=serve)
        thread.start()
        outcomes = await asyncio.gather(*(ticket.outcome for ticket in tickets))
        front.close(GONE)
        thread.join()
        assert [outcome.body for outcome in outcomes] == list(range(10))
        assert sum(claimed) == 10
        assert max(claimed) <= 4

    run(main())


def test_a_claim_takes_what_waits_and_nothing_that_comes_later(backend: Backend) -> None:
    """So what comes while a worker computes stays where its turn is decided, and survives the worker."""

    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        claims: list[list[Any]] = []
        go_on = threading.Semaphore(0)

        def serve() -> None:
            while jobs := worker.claim(4):
                claims.append([job.body for job in jobs])
                go_on.acquire()
                for job in jobs:
                    worker.complete(job, job.body)
            worker.close()

        thread = threading.Thread(target=serve)
        thread.start()
        first = front.submit("first", deadline=soon())
        while not claims:
            await asyncio.sleep(0.005)
        later = [front.submit(number, deadline=soon(30 - number)) for number in range(6)]
        await asyncio.sleep(0.05)
        assert (front.claimed, front.waiting) == (1, 6)
        for _ in range(4):
            go_on.release()
        await asyncio.gather(first.outcome, *(ticket.outcome for ticket in later))
        front.close(GONE)
        thread.join()
        assert claims == [["first"], [5, 4, 3, 2], [1, 0]]

    run(main())


def looked(worker: WorkerChannel, limit: int = 1) -> list[Job]:
    """What a worker finds that looks in until there is something."""
    until = soon()
    while not (jobs := worker.claim(limit, wait=False)):
        assert time.monotonic() < until
        time.sleep(0.002)
    return jobs


def test_a_worker_that_computes_looks_for_more_without_waiting(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        assert worker.claim(wait=False) == []  # nothing yet, and it comes back
        first = front.submit("first", deadline=soon())
        (job,) = await asyncio.to_thread(looked, worker)
        assert worker.claim(wait=False) == []
        later = front.submit("later", deadline=soon())
        (other,) = await asyncio.to_thread(looked, worker)
        assert (job.body, other.body) == ("first", "later")
        worker.complete(other, 2)  # in whatever order it likes
        worker.complete(job, 1)
        assert [(await ticket.outcome).body for ticket in (first, later)] == [1, 2]
        front.close(GONE)
        worker.close()

    run(main())


def test_a_standing_claim_brings_no_more_than_it_asked_for(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        assert worker.claim(3, wait=False) == []
        await asyncio.sleep(0.05)  # the front has the claim before anything waits
        tickets = [front.submit(number, deadline=soon(30 - number)) for number in range(5)]
        (job,) = await asyncio.to_thread(
            looked, worker, 3
        )  # what came first met the claim, and what is left is void
        assert (job.body, front.claimed, front.waiting) == (0, 1, 4)
        more = await asyncio.to_thread(looked, worker, 3)
        assert [job.body for job in more] == [4, 3, 2]  # by deadline, decided when it was claimed
        rest = await asyncio.to_thread(worker.claim, 3)  # one that waits goes on from where the others were
        assert [job.body for job in rest] == [1]
        for each in (job, *more, *rest):
            worker.complete(each, each.body)
        assert [(await ticket.outcome).body for ticket in tickets] == list(range(5))
        front.close(GONE)
        worker.close()

    run(main())


def test_one_that_waits_takes_what_a_standing_claim_brings(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        assert worker.claim(2, wait=False) == []
        waiting = asyncio.create_task(asyncio.to_thread(worker.claim, 2))
        await asyncio.sleep(0.05)
        ticket = front.submit("x", deadline=soon())
        (job,) = await waiting
        worker.complete(job, job.body)
        assert (await ticket.outcome).body == "x"
        front.close(GONE)
        assert await asyncio.to_thread(worker.claim) == []
        worker.close()

    run(main())


def test_what_met_a_standing_claim_and_was_cancelled_is_never_started(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        assert worker.claim(wait=False) == []
        await asyncio.sleep(0.05)
        gone = front.submit("gone", deadline=soon())
        assert front.claimed == 1
        front.cancel(gone)
        front.submit("kept", deadline=soon())
        (job,) = await asyncio.to_thread(looked, worker)
        assert job.body == "kept"
        assert (front.claimed, front.waiting) == (1, 0)
        front.close(GONE)
        worker.close()

    run(main())


def test_what_met_a_standing_claim_is_given_back_when_it_is_cancelled_though_nothing_is_claimed(
    backend: Backend,
) -> None:
    """A worker without a place for it may not claim again for long; the front must not take it for hung."""

    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        running = front.submit("running", deadline=soon())
        (job,) = await asyncio.to_thread(worker.claim)
        assert worker.claim(wait=False) == []
        await asyncio.sleep(0.05)
        given_up = front.submit("given up", deadline=soon())
        assert front.claimed == 2
        front.cancel(given_up)
        while front.claimed == 2:
            assert not worker.cancelled(job)
            await asyncio.sleep(0.002)
        worker.complete(job, job.body)
        assert (await running.outcome).body == "running"
        front.close(GONE)
        worker.close()

    run(main())


def test_what_a_standing_claim_brought_to_a_worker_that_died_is_lost_and_no_more(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        assert worker.claim(wait=False) == []
        await asyncio.sleep(0.05)
        lost, kept = front.submit("lost", deadline=soon()), front.submit("kept", deadline=soon())
        worker.close()
        front.disconnect(GONE)
        with pytest.raises(UnavailableError):
            await lost.outcome
        serving = Serving(backend[1](front.connect()), echo)
        assert (await kept.outcome).body == "kept"
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_who_looks_in_after_the_front_has_gone_finds_nothing(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        front.close(GONE)
        assert worker.claim(wait=False) == []
        assert worker.claim() == []
        worker.close()

    run(main())


def test_parts_stream_in_order_before_the_answer(backend: Backend) -> None:
    def stream(worker: WorkerChannel, job: Job) -> Any:
        for number in range(job.body):
            worker.emit(job, number)
        return "end"

    async def main() -> None:
        front = backend[0](unbroken)
        serving = Serving(backend[1](front.connect()), stream)
        ticket = front.submit(100, deadline=soon())
        assert [part async for part in ticket.parts()] == list(range(100))
        assert (await ticket.outcome).body == "end"
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_errors_cross_as_what_they_are(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        error = InvalidInputError("wrong", field="text", expected="a string", got="7", hint="quote it")
        serving = Serving(backend[1](front.connect()), lambda worker, job: error)
        with pytest.raises(InvalidInputError) as caught:
            await front.submit("x", deadline=soon()).outcome
        assert caught.value.as_dict() == error.as_dict()
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_an_object_cannot_cross_and_the_next_request_can(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        serving = Serving(backend[1](front.connect()), echo)
        for body in (object(), np.array([object()]), np.array(["text"]), {"too large": 2**64}):
            with pytest.raises(InvalidInputError, match="cannot"):
                await front.submit(body, deadline=soon()).outcome
        assert (await front.submit("fine", deadline=soon()).outcome).body == "fine"
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_what_cannot_cross_harms_nothing_that_waits_behind_it(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        descriptor = front.connect()
        poison = [front.submit({"x": 2**64}, deadline=soon()) for _ in range(3)]
        behind = front.submit("behind", deadline=soon())
        serving = Serving(backend[1](descriptor), echo)
        assert (await behind.outcome).body == "behind"
        for ticket in poison:
            with pytest.raises(InvalidInputError, match="cannot"):
                await ticket.outcome
        assert front.waiting == 0
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_expired_work_fails_at_its_deadline_and_is_never_started(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        release = threading.Event()

        def hold(worker: WorkerChannel, job: Job) -> Any:
            release.wait(30)
            return job.body

        serving = Serving(backend[1](front.connect()), hold)
        running = front.submit("running", deadline=soon(0.5))
        while not front.claimed:
            await asyncio.sleep(0.005)
        queued = front.submit("queued", deadline=soon(0.2))
        past = front.submit("past", deadline=soon(-1))
        with pytest.raises(DeadlineError, match="queue"):
            await past.outcome
        with pytest.raises(DeadlineError, match="queue"):
            await queued.outcome
        with pytest.raises(DeadlineError, match="computed"):
            await running.outcome
        assert front.claimed == 1
        await asyncio.sleep(0.05)
        assert front.overdue() > 0
        release.set()
        assert (await front.submit("after", deadline=soon()).outcome).body == "after"
        assert (front.claimed, front.overdue()) == (0, 0.0)
        front.close(GONE)
        serving.thread.join()
        assert serving.started == ["running", "after"]

    run(main())


def test_cancelled_work_is_dropped_or_told(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        told = threading.Event()

        def until_cancelled(worker: WorkerChannel, job: Job) -> Any:
            if job.body == "running":
                while not worker.cancelled(job):
                    time.sleep(0.005)
                told.set()
            return job.body

        serving = Serving(backend[1](front.connect()), until_cancelled)
        running = front.submit("running", deadline=soon())
        while not front.claimed:
            await asyncio.sleep(0.005)
        queued = front.submit("queued", deadline=soon())
        front.cancel(queued)
        front.cancel(running)
        front.cancel(running)
        with pytest.raises(asyncio.CancelledError):
            await running.outcome
        assert (await front.submit("after", deadline=soon()).outcome).body == "after"
        assert told.is_set()
        assert front.waiting == 0
        front.close(GONE)
        serving.thread.join()
        assert serving.started == ["running", "after"]

    run(main())


def test_who_stops_waiting_and_cancels_frees_the_place(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        ticket = front.submit("x", deadline=soon())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ticket.outcome, 0.01)
        assert front.waiting == 1
        front.cancel(ticket)
        assert front.waiting == 0
        front.close(GONE)

    run(main())


def test_many_cancelled_requests_do_not_pile_up(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        kept = front.submit("kept", deadline=soon())
        for _ in range(5000):
            front.cancel(front.submit("x" * 100, deadline=soon()))
        assert front.waiting == 1
        serving = Serving(backend[1](front.connect()), echo)
        assert (await kept.outcome).body == "kept"
        front.close(GONE)
        serving.thread.join()
        assert serving.started == ["kept"]

    run(main())


WORKER = """
import os, sys, time
from mlos.accel.userspace import UserspaceWorker
worker = UserspaceWorker(int(sys.argv[1]))
while jobs := worker.claim():
    for job in jobs:
        if job.body == "die":
            os.kill(os.getpid(), 9)
        worker.complete(job, (os.getpid(), job.body))
"""


def start_worker(front: FrontChannel) -> subprocess.Popen[bytes]:
    descriptor = front.connect()
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(descriptor)], pass_fds=[descriptor])
    os.close(descriptor)
    return process


def test_a_killed_worker_costs_what_it_had_claimed_and_no_more(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        process = start_worker(front)
        assert (await front.submit("hello", deadline=soon()).outcome).body == [process.pid, "hello"]
        victim = front.submit("die", deadline=soon())
        waiting = [front.submit(number, deadline=soon()) for number in range(20)]
        await asyncio.to_thread(process.wait)
        front.disconnect(GONE)
        with pytest.raises(UnavailableError):
            await victim.outcome
        assert front.waiting == 20
        replacement = start_worker(front)
        outcomes = await asyncio.gather(*(ticket.outcome for ticket in waiting))
        assert [outcome.body for outcome in outcomes] == [[replacement.pid, number] for number in range(20)]
        front.close(GONE)
        assert await asyncio.to_thread(replacement.wait) == 0

    run(main())


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_is_sent_to_an_idle_worker_already_dead_goes_to_the_next(backend: Backend, size: int) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        process = start_worker(front)
        await front.submit("hello", deadline=soon()).outcome
        process.send_signal(signal.SIGKILL)
        process.wait()  # without giving the event loop a turn: the front does not know yet
        ticket = front.submit("x" * size, deadline=soon())
        front.disconnect(GONE)
        replacement = start_worker(front)
        assert (await ticket.outcome).body == [replacement.pid, "x" * size]
        front.close(GONE)
        assert await asyncio.to_thread(replacement.wait) == 0

    run(main())


def test_closing_fails_all_and_ends_the_worker(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        waiting = front.submit("x", deadline=soon())
        error: MlosError = UnavailableError("unloaded")
        front.close(error)
        with pytest.raises(UnavailableError, match="unloaded"):
            await waiting.outcome
        worker = backend[1](front.connect())
        front.close(error)
        assert worker.claim() == []
        worker.close()

    run(main())


def test_the_front_waits_for_nobody_while_a_worker_reads_slowly(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        tickets = [front.submit("x" * 60_000, deadline=soon()) for _ in range(64)]
        serving = Serving(worker, lambda worker, job: len(job.body), limit=64)
        outcomes = await asyncio.gather(*(ticket.outcome for ticket in tickets))
        assert {outcome.body for outcome in outcomes} == {60_000}
        front.close(GONE)
        serving.thread.join()

    run(main())
