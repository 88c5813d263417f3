"""Memory is promised once, and nobody makes way in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlos.core.room import Room
from mlos.errors import NoRoomError
from mlos.host.cgroup import usable_memory


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    return run


@dataclass
class Model:
    """A tenant that is held in memory alone."""

    name: str
    needed_bytes: int
    last_used: float = 0.0
    idle: bool = True
    evicted: bool = False
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def enter(self, room: Room) -> None:
        self.stack = AsyncExitStack()
        await self.stack.enter_async_context(room.taken_by(self))

    def memory_bytes(self) -> int | None:
        return self.needed_bytes

    async def evict(self) -> None:
        self.evicted = True
        await asyncio.sleep(0)  # a worker takes a while to end
        await self.stack.aclose()


@in_a_loop
async def test_the_least_recently_used_makes_way_and_no_more_than_needed() -> None:
    room = Room(100)
    old, older, busy = Model("old", 30, 2.0), Model("older", 30, 1.0), Model("busy", 30, 0.0, idle=False)
    for each in (old, older, busy):
        await each.enter(room)
    await Model("new", 35).enter(room)
    assert (old.evicted, older.evicted, busy.evicted) == (False, True, False)


@in_a_loop
async def test_nobody_makes_way_where_it_would_not_suffice() -> None:
    room = Room(100)
    idle, busy = Model("idle", 30), Model("busy", 60, idle=False)
    for each in (idle, busy):
        await each.enter(room)
    with pytest.raises(NoRoomError, match="needs about 41 bytes of memory, 40 are available"):
        await Model("new", 41).enter(room)
    assert not idle.evicted
    await Model("small", 40).enter(room)
    assert idle.evicted


@in_a_loop
async def test_who_is_asked_while_another_makes_way_stays_and_is_counted() -> None:
    room = Room(100)
    first, asked = Model("first", 40, 1.0), Model("asked", 40, 2.0)
    for each in (first, asked):
        await each.enter(room)
    entering = asyncio.create_task(Model("new", 90).enter(room))
    while not first.evicted:
        await asyncio.sleep(0)
    asked.idle = False
    with pytest.raises(NoRoomError, match="needs about 90 bytes of memory, 60 are available"):
        await entering
    assert not asked.evicted


@in_a_loop
async def test_two_at_once_are_not_promised_the_same_room() -> None:
    room = Room(100)
    entered = await asyncio.gather(
        *(Model(str(each), 60, idle=False).enter(room) for each in range(2)), return_exceptions=True
    )
    assert [type(each) for each in entered if each is not None] == [NoRoomError]


@in_a_loop
async def test_without_a_budget_the_host_is_the_limit() -> None:
    room = Room()
    await Model("small", 1 << 20).enter(room)
    with pytest.raises(NoRoomError, match="available"):
        await Model("huge", usable_memory() + 1).enter(room)
