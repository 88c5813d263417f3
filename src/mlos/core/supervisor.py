"""The supervisor: which models are served, and the replica of each.

It follows the store: what is installed is served, what is removed is drained and ended, what failed is tried
again once it is installed again. With ``named`` references only those are served, and they load at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from mlos.core.log import fields
from mlos.core.replica import Replica, State, Terms
from mlos.errors import MlosError, NotFoundError
from mlos.store import Broken, Package, Store
from mlos.tune import Precision

_POLL_SECONDS = 1.0
_MOST_LISTED = 10

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
        self._farewells: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Load what was named, and watch the store from now on."""
        self._follow()
        self._watch = asyncio.create_task(self._follow_on())

    def find(self, name: str) -> Replica:
        """The replica of the model that ``name`` means, loaded or not.

        Raises:
            NotFoundError: it is not installed, or not among the models this server was started for.
            MlosError: its package cannot be used.
        """
        self._follow()
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
        return self._replica(package)

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
            late = [replica for replica in replicas if replica.state is not State.READY]
            if late:
                return f"model {late[0].package.name} is {late[0].state.lower()}: {late[0].reason}"
            return None
        if all(replica.state is State.FAILED for replica in replicas):
            return f"model {replicas[0].package.name} has failed: {replicas[0].reason}"
        return None

    async def close(self) -> None:
        """End all workers."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        for farewell in self._farewells:
            farewell.cancel()
        await asyncio.gather(*self._farewells, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in self._replicas.values()))

    def _replica(self, package: Package) -> Replica:
        replica = self._replicas.get(package.digest)
        if replica is None:
            replica = Replica(package, self._store, self._terms)
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
        if self._named:
            packages = [package for name in self._named if (package := self._look_up(name)) is not None]
        else:
            packages = self._store.packages()
        self._packages = {package.digest: package for package in packages}
        self._broken = self._store.broken()
        self._found = {}
        for digest, replica in list(self._replicas.items()):
            if digest not in self._packages:
                del self._replicas[digest]
                self._say_farewell(replica.drain())
                _log.info("model removed", extra=fields(model=replica.package.name, digest=digest[:12]))
            elif replica.state is State.FAILED:
                del self._replicas[digest]
                self._say_farewell(replica.stop())
            else:
                replica.package = self._packages[digest]
        if self._named:
            for package in packages:
                self._replica(package).start()
        self._generation = generation

    def _look_up(self, name: str) -> Package | None:
        try:
            return self._store.find(name)
        except MlosError as error:
            self._errors[name] = error
            _log.error("model cannot be served", extra=fields(model=name, **error.as_dict()))
            return None

    def _say_farewell(self, ending: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(ending)
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)
