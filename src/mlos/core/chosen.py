"""What each model is served with: this host's tuning record if there is one, else the default; and the reason.

The record is read when a worker is started, so a model that is loaded again takes a new record.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlos.host.environment import record
from mlos.store import Package, Store
from mlos.tune import Choice, Precision, Tuning, chosen, load
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
    """The choices of one server. ``threads`` of 0 leaves their number to the records."""

    def __init__(self, home: Path, store: Store, precision: Precision, threads: int, cores: int) -> None:
        self.precision = precision
        self._home, self._store, self._threads, self._cores = home, store, threads, cores

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
        )
        forms = {each.digest: each for each in (package, *variants)}
        folder = None
        if self._home.joinpath("cache", "compiled").is_dir():
            folder = compiled_folder(self._home, host(), choice.candidate)
        compiled = folder if folder is not None and folder.is_dir() else None
        return Served(forms[choice.candidate.digest], choice, compiled)

    def _record(self, package: Package) -> Tuning | None:
        """The package's record; who has never tuned anything need not know which host this is."""
        if not self._home.joinpath("tuning").is_dir():
            return None
        return load(self._home, host(), package.digest)


@cache
def host() -> str:
    """The environment id of this host, which does not change while it runs."""
    return record().id
