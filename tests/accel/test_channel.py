"""What every channel promises, whichever backend carries it: one suite for all of them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from tests.accel.handling import GONE, Backend, Serving, echo, run, soon, start_worker, unbroken

from mlos.accel import Job, WorkerChannel
from mlos.errors import DeadlineError, InvalidInputError, MlosError, UnavailableError


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
