"""The memory that the workers of a server share: who gets in, and who makes way (F01).

Before a worker is started, what it will need is held against what is left of the budget. Where that is too
little, idle models make way, the least recently asked first; where even that would not suffice, nobody does,
and the load is refused with both figures. An idle one that is asked meanwhile is not idle any more, so
another may have gone in vain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from mlos.core.log import fields
from mlos.errors import NoRoomError
from mlos.host.cgroup import available_memory, usable_memory

_BASE_BYTES, _BYTES_PER_BYTE = 96 << 20, 1.5
"""What a worker takes without a model, and for each byte of its files: about what has been seen."""

_log = logging.getLogger(__name__)


def expected_bytes(size: int, library: int = 0) -> int:
    """Memory that a process with a model is thought to take whose files have ``size`` bytes.

    ``library`` is what its engine's library takes beyond what is usual.
    """
    return _BASE_BYTES + library + int(_BYTES_PER_BYTE * size)


class Tenant(Protocol):
    """A model with a worker, or about to have one."""

    @property
    def name(self) -> str:
        """What the model is called."""
        ...

    @property
    def last_used(self) -> float:
        """When it was last asked, on the monotonic clock."""
        ...

    @property
    def idle(self) -> bool:
        """Whether it may be ended without anybody noticing but by the time that its next request takes."""
        ...

    @property
    def needed_bytes(self) -> int:
        """Memory that it is known to take, or is thought to."""
        ...

    def memory_bytes(self) -> int | None:
        """Memory that its worker has now, while there is one."""
        ...

    async def evict(self) -> None:
        """End its worker; its next request starts another."""
        ...


class Room:
    """The memory of one server's workers. Without a budget it is what this host has and others leave free."""

    def __init__(self, budget: int | None = None) -> None:
        self._budget = budget
        self._tenants: list[Tenant] = []
        self._entrance = asyncio.Lock()

    @asynccontextmanager
    async def taken_by(self, tenant: Tenant) -> AsyncIterator[None]:
        """Keep room for a tenant as long as this lasts.

        Raises:
            NoRoomError: there is not enough, whoever makes way; says how much is needed and available.
        """
        async with self._entrance:  # one at a time, or two would be promised the same room
            await self._make(tenant)
            self._tenants.append(tenant)
        try:
            yield
        finally:
            self._tenants.remove(tenant)

    async def _make(self, tenant: Tenant) -> None:
        needed = tenant.needed_bytes
        while self._free() < needed:
            idle = [each for each in self._tenants if each.idle]  # again each time: one may have been asked
            available = self._free() + sum(each.needed_bytes for each in idle)
            if needed > available:
                available = max(0, available)
                raise NoRoomError(
                    f"model {tenant.name} needs about {needed} bytes of memory, {available} are available",
                    field="memory",
                    expected=f"at most {available} bytes",
                    got=f"{needed} bytes",
                    hint="unload another model, or give the server more memory"
                    + (" with --memory-budget" if self._budget is not None else ""),
                )
            first = min(idle, key=lambda each: each.last_used)
            _log.info(
                "model makes way",
                extra=fields(model=first.name, makes_way_for=tenant.name, needed_bytes=needed),
            )
            await first.evict()

    def _free(self) -> int:
        """Bytes that nobody holds, less what those who are in have still to fill."""
        held = sum(each.needed_bytes for each in self._tenants)
        if self._budget is not None:
            return self._budget - held
        filled = sum(each.memory_bytes() or 0 for each in self._tenants)
        return min(usable_memory() - held, available_memory() - max(0, held - filled))
