"""A front that was told to lets a claim of several wait until it is filled, and no request too long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.accel.handling import GONE, Backend, run, soon, unbroken

from mlos.accel import FrontChannel, Job, WorkerChannel
from mlos.errors import DeadlineError

LONG = 3600.0


def opened(backend: Backend, seconds: float) -> tuple[FrontChannel, WorkerChannel]:
    front = backend[0](unbroken)
    assert front.batch_wait == 0
    front.batch_wait = seconds
    return front, backend[1](front.connect())


def ended(front: FrontChannel, worker: WorkerChannel, jobs: list[Job]) -> None:
    for job in jobs:
        worker.complete(job, job.body)
    front.close(GONE)
    worker.close()


def test_a_claim_is_held_until_it_can_be_filled(backend: Backend) -> None:
    async def main() -> None:
        front, worker = opened(backend, LONG)
        claim = asyncio.create_task(asyncio.to_thread(worker.claim, 3))
        tickets = [front.submit(number, deadline=soon(2 * LONG)) for number in range(2)]
        front.cancel(front.submit("gone", deadline=soon(2 * LONG), priority=5))
        await asyncio.sleep(0.1)
        assert (front.waiting, front.claimed, claim.done()) == (2, 0, False)
        tickets.append(front.submit("urgent", deadline=soon(2 * LONG), priority=-1))
        jobs = await claim
        assert [job.body for job in jobs] == ["urgent", 0, 1]
        ended(front, worker, jobs)

    run(main())


def test_it_is_met_once_the_oldest_has_waited_long_enough(backend: Backend) -> None:
    async def main() -> None:
        front, worker = opened(backend, 0.3)
        claim = asyncio.create_task(asyncio.to_thread(worker.claim, 4))
        await asyncio.sleep(0.05)
        front.submit("first", deadline=soon())
        await asyncio.sleep(0.05)
        front.submit("second", deadline=soon())
        assert front.claimed == 0
        jobs = await claim
        assert [job.body for job in jobs] == ["first", "second"]
        ended(front, worker, jobs)

    run(main())


def test_no_request_is_held_beyond_its_deadline(backend: Backend) -> None:
    async def main() -> None:
        front, worker = opened(backend, LONG)
        claim = asyncio.create_task(asyncio.to_thread(worker.claim, 4))
        patient = front.submit("patient", deadline=soon(2 * LONG))
        hurried = front.submit("hurried", deadline=soon(2))
        jobs = await claim
        assert [job.body for job in jobs] == ["hurried", "patient"]
        for job in jobs:
            worker.complete(job, job.body)
        assert [(await ticket.outcome).body for ticket in (patient, hurried)] == ["patient", "hurried"]
        ended(front, worker, [])

    run(main())


def test_a_claim_of_one_is_never_held_and_what_is_held_may_expire_or_be_cancelled(backend: Backend) -> None:
    async def main() -> None:
        front, worker = opened(backend, LONG)
        front.submit("alone", deadline=soon(2 * LONG))
        (job,) = await asyncio.to_thread(worker.claim)
        assert worker.claim(2, wait=False) == []
        await asyncio.sleep(0.05)
        held: Any = front.submit("held", deadline=soon(2 * LONG))
        assert (front.waiting, front.claimed) == (1, 1)
        front.cancel(held)
        past = front.submit("past", deadline=soon(-1))
        with pytest.raises(DeadlineError):
            await past.outcome
        assert (front.waiting, front.claimed) == (0, 1)
        ended(front, worker, [job])

    run(main())
