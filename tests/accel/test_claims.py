"""What a claim takes, when it is met, and what becomes of it when nobody waits for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from tests.accel.handling import GONE, Backend, Serving, echo, looked, run, soon, unbroken

from mlos.errors import InvalidInputError, UnavailableError


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


def test_an_answer_claims_what_comes_next(backend: Backend) -> None:
    """So a worker that answers one request after another sends one message for each."""

    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        first = front.submit("first", deadline=soon())
        (job,) = await asyncio.to_thread(worker.claim, 4)
        worker.complete(job, job.body, claim=2)
        await first.outcome
        later = [front.submit(number, deadline=soon(30 - number)) for number in range(4)]
        assert front.claimed == 1, "the claim stood: what came first met it, unasked for"
        (job,) = await asyncio.to_thread(worker.claim, 2)
        assert job.body == 0
        worker.complete(job, job.body, claim=2)
        jobs = await asyncio.to_thread(worker.claim, 2)
        assert [job.body for job in jobs] == [3, 2], "no more than it was for"
        worker.complete(jobs[0], jobs[0].body)
        worker.complete(jobs[1], jobs[1].body, claim=2)
        (job,) = await asyncio.to_thread(worker.claim, 2)
        worker.complete(job, job.body)
        assert [(await ticket.outcome).body for ticket in later] == [0, 1, 2, 3]
        front.close(GONE)
        worker.close()

    run(main())


def test_a_claim_that_stands_is_not_made_twice(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        first = front.submit("first", deadline=soon())
        (job,) = await asyncio.to_thread(worker.claim)
        assert worker.claim(wait=False) == []
        worker.complete(job, job.body, claim=1)
        await first.outcome
        later = [front.submit(number, deadline=soon(30 + number)) for number in range(2)]
        assert (front.claimed, front.waiting) == (1, 1)
        front.close(GONE)
        worker.close()
        for ticket in later:
            with pytest.raises(UnavailableError):
                await ticket.outcome

    run(main())


def test_what_a_dead_worker_claimed_with_its_last_answer_is_void(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        first = front.submit("first", deadline=soon())
        (job,) = await asyncio.to_thread(worker.claim)
        kept = front.submit("kept", deadline=soon())
        worker.complete(job, job.body, claim=1)
        front.disconnect(GONE)  # before the event loop has read the answer
        assert (await first.outcome).body == "first"
        assert (front.claimed, front.waiting) == (0, 1)
        serving = Serving(backend[1](front.connect()), echo)
        assert (await kept.outcome).body == "kept"
        front.close(GONE)
        serving.thread.join()
        worker.close()

    run(main())


def test_where_the_last_of_a_claim_cannot_cross_the_others_are_begun(backend: Backend) -> None:
    async def main() -> None:
        front = backend[0](unbroken)
        worker = backend[1](front.connect())
        good = front.submit("good", deadline=soon(20))
        bad = front.submit(object(), deadline=soon(30))
        (job,) = await asyncio.to_thread(worker.claim, 2)
        worker.complete(job, job.body)
        assert (await good.outcome).body == "good"
        with pytest.raises(InvalidInputError):
            await bad.outcome
        front.close(GONE)
        worker.close()

    run(main())
