"""What loads, reloads and ends at the same time, in one event loop with real workers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.core import packages

from mlos.core.chosen import Chooser
from mlos.core.replica import Replica, State, Terms
from mlos.core.room import Room
from mlos.core.spare import Spare
from mlos.core.supervisor import Supervisor
from mlos.core.worker_protocol import Ask
from mlos.errors import UnavailableError
from mlos.model import InferenceRequest
from mlos.store import Store
from mlos.tasks import Limits

SECONDS = 60.0


def terms_of(home: Path, store: Store) -> Terms:
    return Terms(30.0, Limits(), Chooser(home, store, "fp32", 1, 1), Room(), Spare(keep=False))


@asynccontextmanager
async def supervised(home: Path, store: Store) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(store, terms_of(home, store))
    try:
        async with asyncio.timeout(SECONDS):
            yield supervisor
    finally:
        await supervisor.close()


def test_a_new_worker_is_not_taken_for_ready_because_the_one_before_it_became_so(
    home: Path, store: Store
) -> None:
    package = packages.double(store)

    async def test() -> None:
        elder, successor = (Replica(package, store, terms_of(home, store)) for _ in range(2))
        successor.follow(elder)
        try:
            async with asyncio.timeout(SECONDS):
                loading = asyncio.create_task(successor.load("reload"))
                await asyncio.sleep(0)
                elder.loads["restart"] += 1  # its worker has died meanwhile, and another is ready
                await loading
            assert successor.state is State.READY
        finally:
            await successor.stop()

    asyncio.run(test())


def test_a_load_outlasts_that_the_worker_is_sent_to_rest_before_it_is_ready(home: Path, store: Store) -> None:
    package = packages.double(store)

    async def test() -> None:
        replica = Replica(package, store, terms_of(home, store))
        try:
            async with asyncio.timeout(SECONDS):
                loading = asyncio.create_task(replica.load("asked"))
                await asyncio.sleep(0)
                await replica.rest("another version has taken its place")
                await loading
            assert replica.state is State.READY
        finally:
            await replica.stop()

    asyncio.run(test())


def test_a_load_that_waits_for_an_unload_to_end_starts_nothing_in_a_replica_that_is_let_go(
    home: Path, store: Store
) -> None:
    package = packages.double(store)

    async def test() -> None:
        replica = Replica(package, store, terms_of(home, store))
        async with asyncio.timeout(SECONDS):
            await replica.load("asked")
            replica.withdrawn = True
            unloading = asyncio.create_task(replica.unload())
            while replica.state is not State.STOPPED:  # its worker is ending
                await asyncio.sleep(0)
            replica.withdrawn = False
            loading = asyncio.create_task(replica.load("asked"))
            await asyncio.sleep(0)
            await replica.stop()  # as of one that a reload has replaced meanwhile
            await unloading
            with pytest.raises(UnavailableError, match="was unloaded while it was loaded"):
                await loading
            assert replica.state is State.STOPPED
            await asyncio.sleep(0.1)
            assert replica.memory_bytes() is None

    asyncio.run(test())


def test_a_reload_beside_another_leaves_a_worker_that_makes_way(home: Path, store: Store) -> None:
    packages.double(store)

    async def test() -> None:
        async with supervised(home, store) as supervisor:
            present = await supervisor.load("double")
            present.pinned = True  # as another reload, which is still under way, has left it
            assert await supervisor.reload("double") is supervisor.find("double")
            assert supervisor.find("double").idle

    asyncio.run(test())


def test_what_a_removed_model_computes_is_answered_when_the_server_ends(home: Path, store: Store) -> None:
    packages.slow(store)

    async def test() -> None:
        async with supervised(home, store) as supervisor:
            replica = await supervisor.load("slow")
            ask = Ask(InferenceRequest(inputs={"n": 100_000, "x": [1]}))
            ticket = replica.channel.submit(ask, deadline=time.monotonic() + SECONDS)
            while not replica.channel.claimed:
                await asyncio.sleep(0.01)
            store.remove("slow")
            assert supervisor.models() == []
            await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="unloaded"):
            await asyncio.wait_for(asyncio.shield(ticket.outcome), 5)
        assert replica.memory_bytes() is None  # there is no process any more

    asyncio.run(test())
