"""What each model is served with: this host's tuning record if there is one, else the default; and the reason.

The record is read when a worker is started, so a model that is loaded again takes a new record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlos.core.first_load import FirstLoad
from mlos.errors import CorruptError
from mlos.host.environment import record
from mlos.store import Package, Store
from mlos.tune import Choice, Precision, Tuning, chosen, load
from mlos.tune.choice import doubt
from mlos.tune.record import compiled_folder


@dataclass(frozen=True)
class Served:
    """A model as it is served: the package that is computed, which may be a variant, and the choice.

    ``compiled`` is the folder of what the engine compiled for this host, where there is one.
    """

    package: Package
    choice: Choice
    compiled: Path | None = None


class Chooser:
    """The choices of one server. ``threads`` of 0 leaves their number to the records.

    ``first_load`` makes the records that are missing, where the server was told to.
    """

    def __init__(
        self,
        home: Path,
        store: Store,
        precision: Precision,
        threads: int,
        cores: int,
        first_load: FirstLoad | None = None,
    ) -> None:
        self.precision = precision
        self.tunes = first_load is not None
        """Whether :meth:`tune` does anything."""
        self._first_load = first_load
        self._home, self._store, self._threads, self._cores = home, store, threads, cores

    async def tune(self, package: Package, tell: Callable[[str], None]) -> None:
        """See to a record of ``package`` that is believed on this host: minutes, which ``tell`` is told about.

        What cannot be tuned is served all the same, and :meth:`served` says why. Cancelling ends a tuning.
        """
        if self._first_load is not None:
            await self._first_load.tune(package, lambda: self._doubt(package), tell)

    def served(self, package: Package) -> Served:
        """What to serve ``package`` with. The first call may take a second or two, to know the host.

        Raises:
            CorruptError: if the record cannot be read.
            RefusedError: if a precision is forced in which the model was never proved.
        """
        variants = [each for each in self._store.packages() if each.manifest.variant_of == package.digest]
        choice = chosen(
            package,
            variants,
            self._record(package),
            self.precision,
            threads=self._threads or self._cores,
            fixed_threads=bool(self._threads),
            untunable=self._first_load.untunable(package) if self._first_load is not None else None,
        )
        forms = {each.digest: each for each in (package, *variants)}
        folder = None
        if self._home.joinpath("cache", "compiled").is_dir():
            folder = compiled_folder(self._home, host(), choice.candidate)
        compiled = folder if folder is not None and folder.is_dir() else None
        return Served(forms[choice.candidate.digest], choice, compiled)

    def _doubt(self, package: Package) -> str | None:
        """Why no record of this host is believed of ``package``; None where one is."""
        try:
            return doubt(package, self._record(package))
        except CorruptError as error:
            return error.message

    def _record(self, package: Package) -> Tuning | None:
        """The package's record; who has never tuned anything need not know which host this is."""
        if not self._home.joinpath("tuning").is_dir():
            return None
        return load(self._home, host(), package.digest)


@cache
def host() -> str:
    """The environment id of this host, which does not change while it runs."""
    return record().id
