"""A replica: one model's workers through all their lives, and the queue that outlives them.

States: STOPPED (nothing runs; the next request starts it), LOADING, READY (at least one worker is),
RESTARTING (the last worker ended and is being replaced) and FAILED (it was refused, or crashed again and again;
``error`` says why). A worker's death costs the requests that it was computing, which are answered 503 and not
tried again: a request that kills its worker must not kill the next one. Those that wait go to the others and
to the replacement; only when deaths repeat and no worker is left are new ones turned away.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from mlos.accel.userspace import UserspaceFront
from mlos.core.chosen import Served
from mlos.core.life import Life, Terms
from mlos.core.log import fields
from mlos.core.room import expected_bytes
from mlos.core.statistics import Statistics
from mlos.core.worker_protocol import Report
from mlos.engines import library_bytes
from mlos.errors import MlosError, NoRoomError, UnavailableError
from mlos.store import Package, Store

CRASH_LIMIT = 5
"""Deaths in a row, at every place, after which a model is given up."""
DELAYS = (0.0, 0.5, 1.0, 2.0)
"""Seconds before each replacement in a row."""
STABLE_SECONDS = 30.0
"""A worker that was ready for so long died by itself, not in a row."""
_POLL_SECONDS = 0.02
_REST_SECONDS = 0.05
_UNLOADED = "unloaded: it is not served until it is loaded"

_log = logging.getLogger(__name__)


__all__ = ["Replica", "State", "Terms"]


class State(StrEnum):
    """Where a replica stands."""

    STOPPED = "STOPPED"
    LOADING = "LOADING"
    READY = "READY"
    RESTARTING = "RESTARTING"
    FAILED = "FAILED"


@dataclass
class _Place:
    """Where one worker after another serves. ``life`` is the present one, ``crashes`` its deaths in a row.

    ``why`` the next is started, and from when on (``again_at``), where one has to wait for it; ``died_loading``
    if the one before was never ready.
    """

    number: int
    why: str = ""
    life: Life | None = None
    ready: bool = False
    ready_since: float = 0.0
    crashes: int = 0
    died_loading: bool = False
    again_at: float = 0.0


class Replica:
    """One model's workers. Its attributes may be read at any time; ``reason`` explains ``state``."""

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
        self._tuning: asyncio.Task[None] | None = None
        self._readied = 0
        self._peak = 0
        """The most memory that one worker has had."""
        self._places = [_Place(number) for number in range(terms.replicas)]

    def start(self, why: str) -> None:
        """See to it that the workers run or are on their way. Any number of callers share them."""
        if isinstance(self.error, NoRoomError) and self._halting is None:
            self._lives = None  # there may be room by now
        if self._lives is None:
            self.state, self.reason, self.error = State.LOADING, "loading", None
            self._places = [_Place(place.number, why) for place in self._places]
            self._lives = asyncio.create_task(self._live())

    def admit(self) -> None:
        """Start the workers if need be, or raise what a request has to be answered with now.

        Raises:
            UnavailableError: it was unloaded, or its workers die again and again; then ``retry_after`` is when
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
        if self.state is State.RESTARTING and all(place.crashes > 1 for place in self._places):
            again = min(place.again_at for place in self._places)
            raise UnavailableError(
                f"model {self.package.name} is restarting: {self.reason}",
                retry_after=max(0.0, again - time.monotonic()) + (self.load_seconds or 1.0),
            )

    async def load(self, why: str) -> None:
        """Wait until one worker is ready; what failed before is tried again.

        Raises:
            UnavailableError: it dies again and again, or was unloaded meanwhile.
            MlosError: what it failed for.
        """
        while self._halting is not None:
            await asyncio.shield(self._halting)
        if self.error is not None:
            self._lives = self.error = None
        before = self._readied  # not of ``loads``, in which an elder counts too
        while self.state is not State.READY and self._readied == before:
            if self.withdrawn:  # it may have been before anything was started: then nothing is
                raise UnavailableError(f"model {self.name} was unloaded while it was loaded")
            self._refuse()
            self.start(why)  # again, if it has been sent to rest meanwhile
            await asyncio.sleep(_POLL_SECONDS)

    async def unload(self) -> None:
        """End the workers of a model that is out of service, once what was accepted is answered.

        What is being tuned is not tuned any further: what waits for it is answered by the default engine.

        Raises:
            UnavailableError: it was loaded again before that.
        """
        while self.withdrawn and (self.channel.waiting or self.channel.claimed):
            self._stop_tuning()
            await asyncio.sleep(_REST_SECONDS)
        if not self.withdrawn:
            raise UnavailableError(f"model {self.name} was loaded while it was unloaded")
        await self._halt(_UNLOADED)

    async def rest(self, why: str) -> None:
        """End the workers as soon as nothing waits and nothing is computed; the next request starts others."""
        await self._rested()
        await self._halt(why)

    async def evict(self) -> None:
        """End the idle workers to make room."""
        self.evictions += 1
        await self._halt("it made way for another model: its next request loads it")

    async def stop(self) -> None:
        """End the workers for good; what they compute and what waits is answered 503."""
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
        """Note how long a worker spent on a request."""
        self.service_seconds += (seconds - self.service_seconds) * (0.1 if self.service_seconds else 1.0)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.package.name

    @property
    def idle(self) -> bool:
        """Whether its workers may be ended without anybody noticing but by the time of the next request."""
        busy = self.channel.waiting or self.channel.claimed
        return self.state is State.READY and not busy and not self.pinned

    @property
    def workers_ready(self) -> int:
        """How many of its workers are ready."""
        return sum(place.ready for place in self._places)

    @property
    def runs_at_once(self) -> int:
        """How many runs of the engine its ready workers make at once."""
        streams = self.served_as.choice.candidate.streams if self.served_as is not None else 1
        return self.workers_ready * streams

    @property
    def needed_bytes(self) -> int:
        """Memory of all workers: the most one has had here, or what its files let expect before one has run."""
        package = self.served_as.package if self.served_as is not None else self.package
        seen = max(self._peak, *(life.peak_bytes for life in self._lives_now()), 0)
        return len(self._places) * (seen or self._expected_bytes(package))

    def _expected_bytes(self, package: Package) -> int:
        """Of one worker, before any has run."""
        if self.served_as is None:
            return expected_bytes(package.manifest.size, library_bytes(package.manifest.artifact))
        candidate = self.served_as.choice.candidate
        opened = 1 if candidate.streams == 1 else 2
        library = library_bytes(package.manifest.artifact, candidate.engine)
        return expected_bytes(opened * package.manifest.size, library)

    def memory_bytes(self) -> int | None:
        """Resident memory of the workers together, while there is one."""
        return _sum(life.memory_bytes() for life in self._lives_now())

    def peak_memory_bytes(self) -> int | None:
        """The most resident memory that each present worker has had, together."""
        return _sum(life.note_peak() for life in self._lives_now())

    def _lives_now(self) -> list[Life]:
        return [place.life for place in self._places if place.life is not None]

    async def _live(self) -> None:
        try:
            if self.terms.chooser.tunes:
                await self._tune()
            # In a thread: to know the host may take a second, in which others are to be answered.
            served = await asyncio.to_thread(self.terms.chooser.served, self.package)
            self.served_as = served
            self.channel.batch_wait = self.terms.batch_wait if served.choice.batching is not None else 0.0
            async with self.terms.room.taken_by(self):
                with self._store.lease(served.package):
                    await self._fill_all(served)
        except MlosError as error:
            self._fail(error)
        except Exception:  # a bug of ours must not leave requests waiting for a worker that never comes
            _log.exception("a replica met a bug", extra=fields(**self._identity()))
            self._fail(
                MlosError(f"model {self.package.name} cannot be loaded: the server met a bug; see its log")
            )

    async def _tune(self) -> None:
        """See to a record before it is asked for; who stops that gets the model untuned."""
        if self.withdrawn:
            return
        tuning = self._tuning = asyncio.create_task(self.terms.chooser.tune(self.package, self._explain))
        try:
            await asyncio.wait({tuning})
        finally:
            self._stop_tuning()
            await asyncio.wait({tuning})
            self._tuning = None
        if not tuning.cancelled():
            tuning.result()  # where it met a bug, that is raised
        self._explain("loading")

    def _stop_tuning(self) -> None:
        """End what is being measured, once: its own end must not be cut short."""
        if self._tuning is not None and not self._tuning.cancelling():
            self._tuning.cancel()

    def _explain(self, reason: str) -> None:
        if self.state is State.LOADING:  # not when it is being ended
            self.reason = reason

    async def _fill_all(self, served: Served) -> None:
        """See to a worker at every place; it ends when one of them brings the model down, with its reason."""
        try:
            async with asyncio.TaskGroup() as group:
                for place in self._places:
                    group.create_task(self._fill(place, served))
        except ExceptionGroup as several:
            raise several.exceptions[0] from None

    async def _fill(self, place: _Place, served: Served) -> None:
        """One life after another. What brings a model down is a misfortune while others are ready."""
        while True:
            try:
                ended = await self._one_life(place, served)
            except MlosError as error:
                if not self.workers_ready:
                    raise
                ended = f"was refused: {error.message}"
            await self._bury(place, ended)

    async def _rested(self) -> None:
        """Wait until nothing waits and nothing is computed; who has found this replica gets to ask it first."""
        while True:
            await asyncio.sleep(_REST_SECONDS)
            self._stop_tuning()
            if not self.channel.waiting and not self.channel.claimed:
                return

    async def _halt(self, why: str) -> None:
        """End the workers, to which nothing is handed from now on; what waits is left waiting."""
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

    async def _bury(self, place: _Place, ended: str) -> None:
        """Count a death, and wait as long as is proper before the next life."""
        lasted = time.monotonic() - place.ready_since
        place.crashes = 1 if lasted > STABLE_SECONDS else place.crashes + 1
        if not self.workers_ready and all(each.crashes >= CRASH_LIMIT for each in self._places):
            raise UnavailableError(
                f"model {self.package.name}: {place.crashes} workers in a row have died; the last {ended}",
                retry_after=STABLE_SECONDS,
                hint="see the server's log; it is tried again when it is installed or the server restarts",
            )
        self.restarts += 1
        delay = DELAYS[place.crashes - 1] if place.crashes <= len(DELAYS) else STABLE_SECONDS
        place.again_at = time.monotonic() + delay
        if not self.workers_ready:
            self.state, self.reason = State.RESTARTING, f"its worker {ended}"
        _log.warning("worker died", extra=fields(**self._identity(), reason=ended, restarts_in=delay))
        await asyncio.sleep(delay)

    async def _one_life(self, place: _Place, served: Served) -> str:
        """See a worker through; returns how it ended.

        Raises:
            MlosError: it refused to load the model.
        """
        streams = served.choice.candidate.streams
        places = range(place.number * streams, (place.number + 1) * streams)
        ends = (self.channel, places)
        life = Life(self.name, served, self._store, self.terms, *ends, self._loss, wary=place.died_loading)
        place.life, place.ready_since = life, life.started  # who dies loading has not been ready for long
        try:
            return await life.run(lambda report: self._is_ready(place, served, report, life))
        finally:
            self._peak = max(self._peak, life.peak_bytes)
            place.died_loading = not place.ready
            place.life, place.ready = None, False

    def _loss(self) -> MlosError:
        return UnavailableError(
            f"the worker of {self.name} ended while it computed this request; another takes its place",
            retry_after=self.load_seconds or 1.0,
        )

    def _broken(self, place: int, reason: str) -> None:
        assert self.served_as is not None, "who breaks the protocol has been started"
        number = place // self.served_as.choice.candidate.streams
        if (life := self._places[number].life) is not None:
            life.end(f"broke the protocol ({reason}) and was ended")

    def _is_ready(self, place: _Place, served: Served, report: Report, life: Life) -> None:
        place.ready, place.ready_since = True, time.monotonic()
        self._readied += 1
        self.loads[place.why] += 1
        place.why = "restart"
        self.report, self.load_seconds = report, place.ready_since - life.started
        self.state, self.reason = State.READY, None
        _log.info(
            "model ready",
            extra=fields(
                **life.identity,
                engine=f"{report.engine} {report.engine_version}",
                precision=report.precision,
                threads=served.choice.candidate.threads,
                streams=served.choice.candidate.streams,
                chosen=served.choice.reason,
                load_seconds=round(self.load_seconds, 3),
                stages={name: round(seconds, 3) for name, seconds in report.load_seconds.items()},
                sandbox=report.sandbox,
                heavy=report.heavy,
                memory_bytes=life.memory_bytes(),
            ),
        )
        for name, why in report.missing.items():
            _log.warning("sandbox layer missing", extra=fields(**life.identity, layer=name, reason=why))
        if report.note is not None:
            _log.warning(report.note, extra=fields(**life.identity))

    def _identity(self) -> dict[str, str]:
        return {"model": self.name, "digest": self.package.digest[:12]}


def _sum(parts: Iterable[int | None]) -> int | None:
    """The sum of what is known; None if nothing is."""
    known = [part for part in parts if part is not None]
    return sum(known) if known else None
