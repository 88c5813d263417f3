"""What was measured of one model on one host: a file beside the store, for packages are the same everywhere.

``HOME/tuning/HOST/DIGEST.json``, with HOST the environment id. A record is believed on that host alone, and as
long as the engines installed are those that were timed; one that was not faster need not be installed any more.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mlos.errors import CorruptError
from mlos.host.environment import Environment
from mlos.model import ParityMeasure
from mlos.store import Collected, Store
from mlos.tune.paired import Ratio

SCHEMA_VERSION: Literal[1] = 1
Verdict = Literal["default", "faster", "likely faster", "no difference found", "slower", "given up", "refused"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Frozen):
    """One way to compute a model: which package (its own or a variant's), engine, precision, threads.

    With several ``streams`` a run that is alone has all ``threads``, and so many at once share them.
    """

    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    engine: str
    precision: str
    threads: int = Field(ge=1)
    streams: int = Field(default=1, ge=1)

    def __str__(self) -> str:
        at_once = f", {self.streams} streams" if self.streams > 1 else ""
        return (
            f"{self.engine} {self.precision}, {self.threads} thread{'s' if self.threads > 1 else ''}{at_once}"
        )


class Batching(_Frozen):
    """That computing several requests at once pays: up to ``most``, texts of up to ``longest`` tokens.

    ``longest`` is None where lengths do not differ.
    """

    most: int
    longest: int | None


class Trial(_Frozen):
    """What was found out about a candidate. Times are in seconds, one median per block and shape, in order."""

    candidate: Candidate
    verdict: Verdict
    reason: str
    tolerance: str
    parity: tuple[ParityMeasure, ...] = ()
    ratio: Ratio | None = None
    """Over all shapes, against the default timed in alternation. With several streams: of the time of as many
    runs at once over that of as many in a row, by what is chosen for a run that is alone."""
    seconds: dict[str, tuple[float, ...]] = {}
    reference_seconds: dict[str, tuple[float, ...]] = {}
    together: dict[str, Ratio] = {}
    """By shape: the time of a batch over that of its requests one by one."""
    batching: Batching | None = None
    """Absent where it does not pay, or answers would not stay equal."""
    unbatched: str | None = None
    """Why requests may not be computed together."""

    @property
    def passed(self) -> bool:
        """Whether it answers as the framework does."""
        return self.verdict != "refused"


class Tuning(_Frozen):
    """A record. The first trial is the default's, timed against itself."""

    schema_version: Literal[1] = SCHEMA_VERSION
    model: str
    digest: str
    precision: str
    """What was asked for: which classes of precision were among the candidates."""
    tuned_at: AwareDatetime
    mlos: str
    engines: dict[str, str]
    """Version of each engine's library that was among the candidates."""
    host: Environment
    seed: int
    trials: tuple[Trial, ...] = Field(min_length=1)

    @property
    def default(self) -> Trial:
        """The default's."""
        return self.trials[0]


def folder_of(home: Path, host: str) -> Path:
    """Where the records of a host are."""
    return home / "tuning" / host


def path_of(home: Path, host: str, digest: str) -> Path:
    """Where the record of a package is."""
    return folder_of(home, host) / f"{digest}.json"


def compiled_folder(home: Path, host: str, candidate: Candidate) -> Path:
    """Where an engine keeps what it compiled for a host: one folder for each package that is served."""
    return home / "cache" / "compiled" / host / candidate.engine / candidate.digest


def collect_compiled(home: Path, store: Store, *, dry_run: bool) -> Collected:
    """Delete what engines compiled of packages that are not installed any more, for whichever host.

    A server that still has such a form open keeps what it has mapped.
    """
    needed = {package.digest for package in store.packages()} | {each.digest for each in store.broken()}
    unneeded = [folder for folder in (home / "cache" / "compiled").glob("*/*/*") if folder.name not in needed]
    files = [file for folder in unneeded for file in folder.rglob("*") if file.is_file()]
    freed = Collected(len(files), sum(file.stat().st_size for file in files))
    if not dry_run:
        for folder in unneeded:
            shutil.rmtree(folder)
    return freed


def save(home: Path, tuning: Tuning) -> Path:
    """Write a record in place of an older one; readers see the one or the other."""
    path = path_of(home, tuning.host.id, tuning.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with passing.open("x", encoding="utf-8") as stream:
            stream.write(tuning.model_dump_json(indent=1) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)
    return path


def load(home: Path, host: str, digest: str) -> Tuning | None:
    """The record of a package on a host, if there is one.

    Raises:
        CorruptError: if the file is not a record; the hint says what to do.
    """
    path = path_of(home, host, digest)
    try:
        found = Tuning.model_validate_json(path.read_bytes())
        if (found.digest, found.host.id) != (digest, host):
            raise ValueError("it is the record of another package or host")
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, ValueError) as error:
        why = f"{error.error_count()} errors" if isinstance(error, ValidationError) else str(error)
        raise CorruptError(
            f"the tuning record {path.name} cannot be read: {why}",
            field=str(path),
            hint="tune the model again: axon tune",
        ) from error
    return found
