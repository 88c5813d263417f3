"""The supervisor: which models are served, and the replica of each.

It follows the store: what is installed is served, what is removed is drained and ended, what failed is tried
again once it is installed again, and a new version takes a name's place once it is ready. With ``named``
references only those are served, and they load at start. What is loaded, unloaded and reloaded on demand goes
on when nobody waits for it any more; of several such demands the last one counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from mlos.core.log import fields
from mlos.core.replica import Replica, State, Terms
from mlos.errors import MlosError, NotFoundError, UnavailableError
from mlos.store import Broken, Package, Store
from mlos.tune import Precision

_POLL_SECONDS = 1.0
_MOST_LISTED = 10

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class Supervisor:
    """The models of a server. It is used from one event loop."""

    def __init__(self, store: Store, terms: Terms, named: Sequence[str] = ()) -> None:
        self._store, self._terms = store, terms
        self._named = tuple(named)
        self._generation: int | None = None
        self._packages: dict[str, Package] = {}
        self._broken: list[Broken] = []
        self._errors: dict[str, MlosError] = {}
        self._found: dict[str, Package] = {}
        self._replicas: dict[str, Replica] = {}
        self._standing: dict[str, Replica] = {}
        """Names that mean another package than they did, and who answers until that is ready."""
        self._leaving: set[Replica] = set()
        """Those that nobody finds any more, until what they had accepted is answered."""
        self._changes: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load what was named, and watch the store from now on."""
        self._follow()
        self._watch = asyncio.create_task(self._follow_on())

    def find(self, name: str) -> Replica:
        """The replica that answers for what ``name`` means, loaded or not.

        While another version is on its way into a name's place, that is the one that has the place.

        Raises:
            NotFoundError: it is not installed, or not among the models this server was started for.
            MlosError: its package cannot be used.
        """
        self._follow()
        present = self._standing.get(name)
        if present is not None and present.state is State.FAILED:  # it cannot stand in for anybody any more
            del self._standing[name]
            self._drop_removed()
            present = None
        return present or self._replicas.get(name) or self._replica(self._package(name))

    async def load(self, name: str) -> Replica:
        """Load a model now, and take it back into service if it was unloaded; returns once it is ready.

        Raises:
            NotFoundError: as :meth:`find` does.
            MlosError: what it failed for.
        """
        self._follow()
        replica = self._replica(self._package(name))
        replica.withdrawn = False
        await self._seen_through(replica.load("asked"))
        return replica

    async def unload(self, name: str) -> Replica:
        """Take a model out of service; returns once what it had accepted is answered and its worker has ended.

        Raises:
            NotFoundError: as :meth:`find` does.
            UnavailableError: it was loaded again before that.
        """
        self._follow()
        replica = self._replica(self._package(name))
        replica.withdrawn = True
        for other, elder in list(self._standing.items()):
            if self._found.get(other) == replica.package:
                del self._standing[other]
                self._change(self._retire(elder))
        await self._seen_through(replica.unload())
        return replica

    async def reload(self, name: str) -> Replica:
        """Start a new worker beside a model's present one, and put it in its place once it is ready.

        Where no worker is ready this is :meth:`load`. A worker that cannot be loaded changes nothing.

        Raises:
            NotFoundError: as :meth:`find` does.
            UnavailableError: it was unloaded meanwhile.
            MlosError: what the new one failed for.
        """
        self._follow()
        present = self._replica(self._package(name))
        if present.state is not State.READY:
            return await self.load(name)
        return await self._seen_through(self._renew(present))

    def models(self) -> list[Replica]:
        """A replica of every model that is served, loaded or not, last installed first."""
        self._follow()
        return [self._replica(package) for package in self._packages.values()]

    def broken(self) -> list[Broken]:
        """Installed packages that cannot be used."""
        self._follow()
        return self._broken

    @property
    def precision(self) -> Precision:
        """Which class of precision this server was started for."""
        return self._terms.chooser.precision

    def loaded(self) -> list[Replica]:
        """The replicas there are, without a look at the store."""
        return list(self._replicas.values())

    def unready(self) -> str | None:
        """Why requests should go elsewhere; nothing if they should come.

        A model named at start has to be ready. Without names one servable model is enough, for each loads on
        its first use.
        """
        self._follow()
        if self._errors:
            name, error = next(iter(self._errors.items()))
            return f"model {name} failed: {error.message}"
        replicas = [self._replica(package) for package in self._packages.values()]
        if not replicas:
            return "no model is installed"
        if self._named:
            stood_in_for = {
                self._found[name].digest
                for name, replica in self._standing.items()
                if replica.state is State.READY and name in self._found
            }
            late = [
                replica
                for replica in replicas
                if replica.state is not State.READY
                and not replica.withdrawn
                and replica.package.digest not in stood_in_for
            ]
            if late:
                return f"model {late[0].package.name} is {late[0].state.lower()}: {late[0].reason}"
        elif all(replica.state is State.FAILED for replica in replicas):
            return f"model {replicas[0].name} has failed: {replicas[0].reason}"
        if all(replica.withdrawn or replica.state is State.FAILED for replica in replicas):
            return "no model is in service: all have been unloaded or have failed"
        return None

    async def close(self) -> None:
        """End all workers."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for change in self._changes:
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in (*self._replicas.values(), *self._leaving)))

    def _package(self, name: str) -> Package:
        package = self._found.get(name)
        if package is None:
            package = self._store.find(name)
            if package.digest not in self._packages:
                served = ", ".join(sorted(package.name for package in self._packages.values())[:_MOST_LISTED])
                raise NotFoundError(
                    f"model {name!r} is installed, but this server was started for: {served or 'none'}",
                    field="model",
                    got=repr(name),
                    hint="start mlos_core without --model to serve every installed model",
                )
            self._found[name] = package
        return package

    def _replica(self, package: Package) -> Replica:
        replica = self._replicas.get(package.digest)
        if replica is None:
            replica = Replica(package, self._store, self._terms)
            replica.pinned = bool(self._named)
            self._replicas[package.digest] = replica
        return replica

    async def _follow_on(self) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            try:
                self._follow()
            except (MlosError, OSError) as error:
                _log.error("the store cannot be read", extra=fields(reason=str(error)))

    def _follow(self) -> None:
        """Take in what has been installed or removed since the last look; costs one ``stat`` if nothing was."""
        generation = self._store.generation()
        if generation == self._generation:
            return
        self._errors = {}
        known, self._found = self._found, {}
        if self._named:
            named = {name: package for name in self._named if (package := self._look_up(name)) is not None}
            packages = list(named.values())
            self._found |= named
        else:
            packages = self._store.packages()
        self._packages = {package.digest: package for package in packages}
        self._broken = self._store.broken()
        for digest, replica in list(self._replicas.items()):
            if digest in self._packages:
                replica.package = self._packages[digest]
                if replica.state is State.FAILED:
                    del self._replicas[digest]
                    self._change(replica.stop())
        for name, package in known.items():
            if (present := self._standing.get(name) or self._replicas.get(package.digest)) is not None:
                self._hand_on(name, present)
        self._drop_removed()
        if self._named:
            for package in packages:
                if not (replica := self._replica(package)).withdrawn:
                    replica.start("start")
        self._generation = generation

    def _drop_removed(self) -> None:
        for digest, replica in list(self._replicas.items()):
            if digest not in self._packages and replica not in self._standing.values():
                del self._replicas[digest]
                self._let_go(replica)
                _log.info("model removed", extra=fields(model=replica.name, digest=digest[:12]))

    def _hand_on(self, name: str, present: Replica) -> None:
        """See to a name that ``present`` answers for and that may mean another package by now."""
        self._standing.pop(name, None)
        try:
            package = self._package(name)
        except MlosError:  # removed or broken, which the next request is told
            return
        if package.digest == present.package.digest:
            return
        successor = self._replica(package)
        if present.withdrawn:
            successor.withdrawn, successor.reason = True, present.reason
        elif present.state is State.READY and successor.state is not State.READY:
            self._standing[name], present.pinned = present, True
            self._change(self._succeed(name, present, successor))

    async def _succeed(self, name: str, present: Replica, successor: Replica) -> None:
        """Load the version that a name means now, and give it the name's place once it is ready."""
        versions = {
            "model": name,
            "digest": successor.package.digest[:12],
            "before": present.package.digest[:12],
        }
        try:
            await successor.load("update")
        except MlosError as error:
            told = fields(**versions, reason=error.message)
            _log.warning("a new version cannot be loaded: the one before it serves on", extra=told)
            return
        if self._standing.get(name) is present and self._found.get(name) == successor.package:
            del self._standing[name]
            _log.info("a new version has taken the place of the one before it", extra=fields(**versions))
            await self._retire(present)

    async def _retire(self, present: Replica) -> None:
        """Let a replica go whose name means another version now, unless another name still means it."""
        digest = present.package.digest
        others = (name for name, package in self._found.items() if package.digest == digest)
        if present in self._standing.values() or any(not digest.startswith(name) for name in others):
            return
        present.pinned = bool(self._named)
        if digest in self._packages:
            await present.rest("another version has taken its place: a request for this one loads it")
        else:
            await present.drain()
            self._drop_removed()

    async def _renew(self, present: Replica) -> Replica:
        digest = present.package.digest
        successor = Replica(present.package, self._store, self._terms)
        successor.follow(present)
        present.pinned = True
        try:
            await successor.load("reload")
            if present.withdrawn or self._replicas.get(digest) is not present:
                raise UnavailableError(f"model {present.name} was changed while it was reloaded")
        except BaseException:
            present.pinned = self._stays(present)
            await successor.stop()
            raise
        self._replicas[digest] = successor
        for name in [name for name, replica in self._standing.items() if replica is present]:
            self._standing[name] = successor
        successor.pinned = self._stays(successor)
        self._let_go(present)
        return successor

    def _stays(self, replica: Replica) -> bool:
        """Whether a replica makes way for nobody."""
        return bool(self._named) or replica in self._standing.values()

    def _look_up(self, name: str) -> Package | None:
        try:
            return self._store.find(name)
        except MlosError as error:
            self._errors[name] = error
            _log.error("model cannot be served", extra=fields(model=name, **error.as_dict()))
            return None

    def _let_go(self, replica: Replica) -> None:
        """End a replica that nobody finds any more, once what it had accepted is answered."""
        self._leaving.add(replica)
        self._change(replica.drain()).add_done_callback(
            lambda drained: None if drained.cancelled() else self._leaving.discard(replica)
        )

    async def _seen_through(self, change: Coroutine[Any, Any, _T]) -> _T:
        """What a change results in, which goes on when nobody waits for it any more."""
        return await asyncio.shield(self._change(change))

    def _change(self, change: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return task
