"""Several workers share one front: its heap, its order, and nothing else."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.accel.handling import GONE, Backend, Serving, echo, run, soon, start_worker, unbroken

from mlos.accel import Job, WorkerChannel
from mlos.errors import UnavailableError


def test_two_workers_take_what_is_first_in_one_queue(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        workers = [backend[1](front.connect(place)) for place in (0, 1)]
        order = [("low", 5), ("first", 0), ("urgent", -1), ("second", 0)]
        tickets = [
            front.submit(name, deadline=soon(30 + number), priority=priority)
            for number, (name, priority) in enumerate(order)
        ]
        taken: list[Any] = []
        for worker in (workers[1], workers[0], workers[0], workers[1]):
            (job,) = await asyncio.to_thread(worker.claim)
            taken.append(job.body)
            worker.complete(job, job.body)
        assert taken == ["urgent", "first", "second", "low"]
        assert [(await ticket.outcome).body for ticket in tickets] == [name for name, _ in order]
        front.close(GONE)
        for worker in workers:
            assert worker.claim() == []
            worker.close()

    run(main())


def test_both_compute_at_once_and_the_one_with_less_to_do_goes_first(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        busy, free = (backend[1](front.connect(place)) for place in (0, 1))
        first = front.submit("first", deadline=soon())
        (one,) = await asyncio.to_thread(busy.claim)
        assert busy.claim(wait=False) == []  # it computes, and would take another
        assert free.claim(wait=False) == []
        await asyncio.sleep(0.05)
        second = front.submit("second", deadline=soon())
        (other,) = await asyncio.to_thread(free.claim)
        assert (other.body, front.claimed) == ("second", 2)
        assert busy.claim(wait=False) == []
        free.complete(other, 2)
        busy.complete(one, 1)
        assert [(await ticket.outcome).body for ticket in (first, second)] == [1, 2]
        front.close(GONE)
        for worker in (busy, free):
            worker.close()

    run(main())


def test_many_requests_through_two_workers_are_each_answered_once(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        meet = threading.Barrier(2)

        def answer(worker: WorkerChannel, job: Job) -> Any:
            if job.body < 2:
                meet.wait(30)  # passed only if two compute at once
            return job.body

        serving = [Serving(backend[1](front.connect(place)), answer) for place in (0, 1)]
        tickets = [front.submit(number, deadline=soon(), priority=number) for number in range(400)]
        outcomes = await asyncio.gather(*(ticket.outcome for ticket in tickets))
        assert [outcome.body for outcome in outcomes] == list(range(400))
        front.close(GONE)
        for each in serving:
            each.thread.join()
        assert sorted(serving[0].started + serving[1].started) == list(range(400))
        assert all(each.started == sorted(each.started) for each in serving)

    run(main())


def test_the_death_of_one_costs_its_own_claims_and_nothing_else(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        other = backend[1](front.connect(1))
        process: subprocess.Popen[bytes] = start_worker(front)
        while (await front.submit("hello", deadline=soon()).outcome).body != [process.pid, "hello"]:
            await asyncio.sleep(0.01)
        victim = front.submit("die", deadline=soon(), priority=-1)
        await asyncio.to_thread(process.wait)
        kept = front.submit("kept", deadline=soon())
        (job,) = await asyncio.to_thread(other.claim)
        waiting = front.submit("waiting", deadline=soon())
        assert (front.claimed, front.waiting) == (2, 1)
        front.disconnect(GONE, 0)
        with pytest.raises(UnavailableError):
            await victim.outcome
        assert (front.claimed, front.waiting) == (1, 1)
        other.complete(job, job.body)
        assert (await kept.outcome).body == "kept"
        replacement = start_worker(front)  # at the place that is free again
        assert (await waiting.outcome).body == [replacement.pid, "waiting"]
        front.close(GONE)
        assert await asyncio.to_thread(replacement.wait) == 0
        assert other.claim() == []
        other.close()

    run(main())


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_a_dead_worker_never_got_goes_to_the_other_at_once(backend: Backend, size: int) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        dead, other = (backend[1](front.connect(place)) for place in (0, 1))
        assert dead.claim(wait=False) == []
        await asyncio.sleep(0.05)  # its claim is the older one
        serving = Serving(other, echo)
        await asyncio.sleep(0.05)
        dead.close()  # without giving the event loop a turn: the front does not know yet
        ticket = front.submit("x" * size, deadline=soon())
        assert (await ticket.outcome).body == "x" * size
        assert front.claimed == 0
        front.close(GONE)
        serving.thread.join()

    run(main())


def test_a_worker_speaks_of_its_own_requests_only(backend: Backend) -> None:
    async def main() -> None:
        reasons: list[tuple[int, str]] = []
        front = backend[0](lambda place, reason: reasons.append((place, reason)))
        honest, thief = (backend[1](front.connect(place)) for place in (0, 1))
        ticket = front.submit("mine", deadline=soon())
        (job,) = await asyncio.to_thread(honest.claim)
        thief.complete(job, "stolen")
        while not reasons:
            await asyncio.sleep(0.005)
        ((place, reason),) = reasons
        assert (place, reason) == (1, f"spoke of request {job.id}, which it has not claimed")
        assert thief.claim() == []  # it was hung up on
        honest.complete(job, "answer")
        assert (await ticket.outcome).body == "answer"
        front.close(GONE)
        for worker in (honest, thief):
            worker.close()

    run(main())


def test_the_time_overrun_is_that_of_one_worker(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        late, punctual = (backend[1](front.connect(place)) for place in (0, 1))
        front.submit("late", deadline=soon(0.2))
        await asyncio.to_thread(late.claim)
        front.submit("punctual", deadline=soon())
        await asyncio.to_thread(punctual.claim)
        await asyncio.sleep(0.3)
        assert front.overdue(0) > 0
        assert (front.overdue(1), front.overdue(2)) == (0.0, 0.0)
        front.close(GONE)
        for worker in (late, punctual):
            worker.close()

    run(main())


def test_descriptors_are_given_back(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            workers = [backend[1](front.connect(place)) for place in range(3)]
            front.disconnect(GONE)
            for worker in workers:
                worker.close()
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    run(main())
