"""A replica: one model's worker through all its lives, and the queue that outlives them.

States: STOPPED (nothing runs; the next request starts it), LOADING, READY, RESTARTING (the worker ended and is
being replaced) and FAILED (it was refused, or crashed again and again; ``error`` says why). A worker's death
costs the requests that it was computing, which are answered 503 and not tried again: a request that kills its
worker must not kill the next one. Those that wait go to the replacement; only when deaths repeat are new ones
turned away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from enum import StrEnum

from mlos.accel.userspace import UserspaceFront
from mlos.core.chosen import Served
from mlos.core.life import Life, Terms
from mlos.core.log import fields
from mlos.core.statistics import Statistics
from mlos.core.worker_protocol import Report
from mlos.errors import MlosError, NoRoomError, UnavailableError
from mlos.store import Package, Store

CRASH_LIMIT = 5
"""Deaths in a row after which a model is given up."""
DELAYS = (0.0, 0.5, 1.0, 2.0)
"""Seconds before each replacement in a row."""
STABLE_SECONDS = 30.0
"""A worker that was ready for so long died by itself, not in a row."""
_POLL_SECONDS = 0.02
_REST_SECONDS = 0.05
_UNLOADED = "unloaded: it is not served until it is loaded"
_BASE_BYTES, _BYTES_PER_BYTE = 96 << 20, 1.5
"""What a worker takes without a model, and for each byte of its files: about what has been seen."""

_log = logging.getLogger(__name__)


__all__ = ["Replica", "State", "Terms"]


class State(StrEnum):
    """Where a replica stands."""

    STOPPED = "STOPPED"
    LOADING = "LOADING"
    READY = "READY"
    RESTARTING = "RESTARTING"
    FAILED = "FAILED"


class Replica:
    """One model's worker. Its attributes may be read at any time; ``reason`` explains ``state``."""

    def __init__(self, package: Package, store: Store, terms: Terms) -> None:
        self.package = package
        self.state = State.STOPPED
        self.reason: str | None = "not loaded yet: its first request loads it"
        self.error: MlosError | None = None
        self.served_as: Served | None = None
        """What it is served with, once it is loaded or on its way."""
        self.report: Report | None = None
        self.load_seconds: float | None = None
        self.restarts = 0
        self.evictions = 0
        self.loads: Counter[str] = Counter()
        """How often it became ready, by why it was loaded."""
        self.withdrawn = False
        """Whether it is to be out of service: then requests are turned away. The supervisor says so, at once,
        while loading and unloading take their time: the last word counts."""
        self.pinned = False
        """Whether it makes way for no other model."""
        self.last_used = time.monotonic()
        self.terms = terms
        self.statistics = Statistics()
        self.service_seconds = 0.0
        """Recent mean of seconds the worker spends on one request."""
        self.channel = UserspaceFront(self._broken)
        self._store = store
        self._lives: asyncio.Task[None] | None = None
        self._halting: asyncio.Task[None] | None = None
        self._why = ""
        self._readied = 0
        self._peak = 0
        self._life: Life | None = None
        self._ready_since = 0.0
        self._again_at = 0.0
        self._crashes = 0

    def start(self, why: str) -> None:
        """See to it that a worker runs or is on its way. Any number of callers share one."""
        if isinstance(self.error, NoRoomError) and self._halting is None:
            self._lives = None  # there may be room by now
        if self._lives is None:
            self.state, self.reason, self.error = State.LOADING, "loading", None
            self._why, self._crashes = why, 0
            self._lives = asyncio.create_task(self._live())

    def admit(self) -> None:
        """Start the worker if need be, or raise what a request has to be answered with now.

        Raises:
            UnavailableError: it was unloaded, or its worker dies again and again; then ``retry_after`` is when
                the next should be ready.
            MlosError: the model has failed, for this reason.
        """
        if self.withdrawn:
            raise UnavailableError(
                f"model {self.name} has been unloaded",
                field="model",
                retry_after=STABLE_SECONDS,
                hint=f"administration loads it again: POST /admin/models/{self.name}/load",
            )
        self.last_used = time.monotonic()
        self.start("request")
        self._refuse()

    def _refuse(self) -> None:
        if self.error is not None:
            raise self.error.again()
        if self.state is State.RESTARTING and self._crashes > 1:
            raise UnavailableError(
                f"model {self.package.name} is restarting: {self.reason}",
                retry_after=max(0.0, self._again_at - time.monotonic()) + (self.load_seconds or 1.0),
            )

    async def load(self, why: str) -> None:
        """Wait until the model is ready; what failed before is tried again.

        Raises:
            UnavailableError: it dies again and again, or was unloaded meanwhile.
            MlosError: what it failed for.
        """
        while self._halting is not None:
            await asyncio.shield(self._halting)
        if self.error is not None:
            self._lives = None
        before = self._readied  # not of ``loads``, in which an elder counts too
        self.start(why)
        while self.state is not State.READY and self._readied == before:
            if self.withdrawn:
                raise UnavailableError(f"model {self.name} was unloaded while it was loaded")
            self._refuse()
            self.start(why)  # it may have been sent to rest meanwhile
            await asyncio.sleep(_POLL_SECONDS)

    async def unload(self) -> None:
        """End the worker of a model that is out of service, once what was accepted is answered.

        Raises:
            UnavailableError: it was loaded again before that.
        """
        while self.withdrawn and (self.channel.waiting or self.channel.claimed):
            await asyncio.sleep(_REST_SECONDS)
        if not self.withdrawn:
            raise UnavailableError(f"model {self.name} was loaded while it was unloaded")
        await self._halt(_UNLOADED)

    async def rest(self, why: str) -> None:
        """End the worker as soon as nothing waits and nothing is computed; the next request starts another."""
        await self._rested()
        await self._halt(why)

    async def evict(self) -> None:
        """End the idle worker to make room."""
        self.evictions += 1
        await self._halt("it made way for another model: its next request loads it")

    async def stop(self) -> None:
        """End the worker for good; what it computes and what waits is answered 503."""
        self.withdrawn = True
        self.channel.close(UnavailableError(f"model {self.name} has been unloaded"))
        await self._halt(_UNLOADED)

    async def drain(self) -> None:
        """Stop as soon as nothing waits and nothing is computed."""
        await self._rested()
        await self.stop()

    def follow(self, elder: Replica) -> None:
        """Go on with what an elder of the same package has counted and learnt."""
        self.statistics, self.loads = elder.statistics, elder.loads
        self.evictions, self.restarts = elder.evictions, elder.restarts
        self._peak = elder._peak

    def served(self, seconds: float) -> None:
        """Note how long the worker spent on a request."""
        self.service_seconds += (seconds - self.service_seconds) * (0.1 if self.service_seconds else 1.0)

    @property
    def pid(self) -> int | None:
        """The worker process, while there is one."""
        return self._life.pid if self._life is not None else None

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.package.name

    @property
    def idle(self) -> bool:
        """Whether its worker may be ended without anybody noticing but by the time of the next request."""
        busy = self.channel.waiting or self.channel.claimed
        return self.state is State.READY and not busy and not self.pinned

    @property
    def needed_bytes(self) -> int:
        """Memory of a worker: the most one has had here, or what its files let expect before one has run."""
        package = self.served_as.package if self.served_as is not None else self.package
        seen = max(self._peak, self._life.peak_bytes if self._life is not None else 0)
        return seen or _BASE_BYTES + int(_BYTES_PER_BYTE * package.manifest.size)

    def memory_bytes(self) -> int | None:
        """Resident memory of the worker, while there is one."""
        return self._life.memory_bytes() if self._life is not None else None

    def peak_memory_bytes(self) -> int | None:
        """The most resident memory the worker has had, while there is one."""
        return self._life.note_peak() if self._life is not None else None

    async def _live(self) -> None:
        try:
            # In a thread: to know the host may take a second, in which others are to be answered.
            served = await asyncio.to_thread(self.terms.chooser.served, self.package)
            self.served_as = served
            async with self.terms.room.taken_by(self):
                with self._store.lease(served.package):
                    while True:
                        await self._bury(await self._one_life(served))
        except MlosError as error:
            self._fail(error)
        except Exception:  # a bug of ours must not leave requests waiting for a worker that never comes
            _log.exception("a replica met a bug", extra=fields(**self._identity()))
            self._fail(
                MlosError(f"model {self.package.name} cannot be loaded: the server met a bug; see its log")
            )

    async def _rested(self) -> None:
        """Wait until nothing waits and nothing is computed; who has found this replica gets to ask it first."""
        while True:
            await asyncio.sleep(_REST_SECONDS)
            if not self.channel.waiting and not self.channel.claimed:
                return

    async def _halt(self, why: str) -> None:
        """End the worker, to which nothing is handed from now on; what waits is left waiting."""
        if self._halting is None:
            self.channel.disconnect(UnavailableError(f"model {self.name} has been unloaded"))
            self.state, self.reason = State.STOPPED, why
            self._halting = asyncio.create_task(self._end_lives(why))
        await asyncio.shield(self._halting)

    async def _end_lives(self, why: str) -> None:
        if self._lives is not None:
            self._lives.cancel()
            await asyncio.wait({self._lives})
        self.channel.disconnect(UnavailableError(f"model {self.name} has been unloaded"))
        self._lives = self._halting = self.error = None
        self.state, self.reason = State.STOPPED, why  # what ended may have said otherwise at the last moment
        if self.channel.waiting:  # accepted meanwhile
            self.start("request")

    def _fail(self, error: MlosError) -> None:
        self.error, self.state, self.reason = error, State.FAILED, error.message
        self.channel.close(error)
        _log.error("model failed", extra=fields(**self._identity(), **error.as_dict()))

    async def _bury(self, ended: str) -> None:
        """Count a death, and wait as long as is proper before the next life."""
        self._crashes = 1 if time.monotonic() - self._ready_since > STABLE_SECONDS else self._crashes + 1
        if self._crashes >= CRASH_LIMIT:
            raise UnavailableError(
                f"model {self.package.name}: {self._crashes} workers in a row have died; the last {ended}",
                retry_after=STABLE_SECONDS,
                hint="see the server's log; it is tried again when it is installed or the server restarts",
            )
        self.restarts += 1
        delay = DELAYS[self._crashes - 1]
        self._again_at = time.monotonic() + delay
        self.state, self.reason = State.RESTARTING, f"its worker {ended}"
        _log.warning("worker died", extra=fields(**self._identity(), reason=ended, restarts_in=delay))
        await asyncio.sleep(delay)

    async def _one_life(self, served: Served) -> str:
        """See a worker through; returns how it ended.

        Raises:
            MlosError: it refused to load the model.
        """
        life = self._life = Life(self.name, served, self._store, self.terms, self.channel, self._loss)
        self._ready_since = life.started  # a worker that dies while it loads has not been ready for long
        try:
            return await life.run(lambda report: self._is_ready(served, report, life))
        finally:
            self._peak = max(self._peak, life.peak_bytes)
            self._life = None

    def _loss(self) -> MlosError:
        return UnavailableError(
            f"the worker of {self.name} ended while it computed this request; another takes its place",
            retry_after=self.load_seconds or 1.0,
        )

    def _broken(self, reason: str) -> None:
        if self._life is not None:
            self._life.end(f"broke the protocol ({reason}) and was ended")

    def _is_ready(self, served: Served, report: Report, life: Life) -> None:
        self._ready_since = time.monotonic()
        self._readied += 1
        self.loads[self._why] += 1
        self._why = "restart"
        self.report, self.load_seconds = report, self._ready_since - life.started
        self.state, self.reason = State.READY, None
        _log.info(
            "model ready",
            extra=fields(
                **life.identity,
                engine=f"{report.engine} {report.engine_version}",
                precision=report.precision,
                threads=served.choice.candidate.threads,
                chosen=served.choice.reason,
                load_seconds=round(self.load_seconds, 3),
                stages={name: round(seconds, 3) for name, seconds in report.load_seconds.items()},
                sandbox=report.sandbox,
                heavy=report.heavy,
                memory_bytes=self.memory_bytes(),
            ),
        )
        for name, why in report.missing.items():
            _log.warning("sandbox layer missing", extra=fields(**life.identity, layer=name, reason=why))
        if report.note is not None:
            _log.warning(report.note, extra=fields(**life.identity))

    def _identity(self) -> dict[str, str | int | None]:
        return {"model": self.name, "digest": self.package.digest[:12], "worker": self.pid}
