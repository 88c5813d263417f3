"""The result of a validation run: one versioned JSON file, from which every page and number is drawn.

Times are in the unit their name says; raw samples are kept whole (:mod:`mlos.validation.timing`), so that
anyone can compute anew. Schema 2 added families, intervals, generation, and the stages of loading; schema 3
what a model was served with and why. Files of older schemas are read as they are.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlos.errors import NotFoundError, RefusedError
from mlos.model import ParityMeasure, Weights
from mlos.parity import TOLERANCES, tolerance_named
from mlos.tune import Tuning
from mlos.validation.tiers import Tier
from mlos.validation.timing import Generation, Latency

SCHEMA_VERSION: Literal[3] = 3

Status: TypeAlias = Literal["passed", "failed", "not run"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Gate(_Frozen):
    """One thing a model must do to pass. ``detail`` says what was seen, or why it failed."""

    name: Literal["install", "load", "parity", "results", "traffic", "stages", "generation", "shutdown"]
    status: Status
    detail: str = ""


class Install(_Frozen):
    """How the package came about. ``seconds`` are those of the install that made it, by stage.

    A cached install did none of them in this run; its ``total_seconds`` is what looking it up took.
    """

    cached: bool
    seconds: dict[str, float]
    total_seconds: float
    size_bytes: int | None = None


class Load(_Frozen):
    """How long the model took to be ready: in its worker, and from the server's start to its readiness.

    ``stages`` are the worker's own: start, verify, confine, open, warm_up.
    """

    condition: str = "first load, page cache as it was"
    worker_seconds: float | None
    ready_seconds: float
    stages: dict[str, float] = {}


class Serving(_Frozen):
    """What the server computed the model with, and why; ``tuning`` is this host's record where there is one.

    ``digest`` is that of the package that is computed, which may be a variant; up to ``batch`` requests are
    computed together.
    """

    engine: str
    precision: str
    threads: int
    digest: str
    batch: int
    chosen: str
    tuning: Tuning | None = None


class CaseParity(_Frozen):
    """One golden case, asked through the server: the error of each output."""

    case: str
    measures: tuple[ParityMeasure, ...]


class Parity(_Frozen):
    """The model's outputs against its framework's: worst over cases at install and over HTTP, and by case."""

    tolerance: str
    framework: dict[str, str] = {}
    at_install: tuple[ParityMeasure, ...] = ()
    over_http: tuple[ParityMeasure, ...] = ()
    cases: tuple[CaseParity, ...] = ()

    @property
    def worst(self) -> ParityMeasure | None:
        """The measure nearest to its tolerance, or furthest beyond it; over HTTP where that was measured."""
        measures = self.over_http or self.at_install
        return max(measures, key=lambda m: (not m.passed, share_of_tolerance(m)), default=None)


class ResultCheck(_Frozen):
    """One golden case, asked as a person would: whether the task's result is the framework's.

    ``detail`` says what differs, or of a passed result what its tolerance leaves uncompared.
    """

    case: str
    task: str
    passed: bool
    detail: str = ""


class Row(_Frozen):
    """What was found of one model in one format, engine, precision and mode."""

    name: str
    family: str | None = None
    """The catalogue's category, for example ``nlp``; absent for a model that is not in it."""
    requested: str
    reference: str | None = None
    digest: str | None = None
    weights: Weights | None = None
    weights_reason: str = ""
    licence: str | None = None
    tasks: tuple[str, ...] = ()
    format: str | None = None
    engine: str | None = None
    precision: str | None = None
    mode: str | None = None
    serving: Serving | None = None
    status: Status
    reason: str | None = None
    gates: tuple[Gate, ...] = ()
    install: Install | None = None
    load: Load | None = None
    parity: Parity | None = None
    results: tuple[ResultCheck, ...] = ()
    latency: Latency | None = None
    generation: Generation | None = None
    memory_bytes: int | None = None
    """Of the worker when it was ready."""
    peak_memory_bytes: int | None = None
    """The most the worker held until the end of the load."""
    commands: dict[str, str] = {}
    """What to type to see it again: ``all`` for the row, ``install`` and ``serve`` for its steps."""


class Run(_Frozen):
    """One run of ``mlos validate``."""

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    run: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    started: datetime
    finished: datetime
    command: str
    tier: Tier
    seed: int
    environment: dict[str, Any]
    """The host's record (:mod:`mlos.host.environment`), kept as it was written: newer hosts say more."""
    versions: dict[str, str]
    rows: tuple[Row, ...]

    def count(self, status: Status) -> int:
        """How many rows have this status."""
        return sum(row.status == status for row in self.rows)

    @property
    def parity_failed(self) -> bool:
        """Whether an answer differed from the framework's, at install or through the server."""
        return any(gate.status == "failed" and gate.name in ("parity", "results") for gate in self._gates)

    @property
    def _gates(self) -> list[Gate]:
        return [gate for row in self.rows for gate in row.gates]

    def to_json(self) -> str:
        """The run as JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"

    def save(self, folder: Path) -> Path:
        """Write the run to ``folder`` under its own name: wholly or not at all."""
        path = folder / f"{self.run}.json"
        write_atomically(path, self.to_json())
        return path

    @classmethod
    def parse(cls, data: bytes, origin: str) -> Run:
        """Read a stored run; ``origin`` names it in errors.

        Raises:
            RefusedError: if it is of a newer schema, or not a run.
        """
        try:
            version = json.loads(data).get("schema_version")
        except (ValueError, AttributeError, RecursionError) as error:
            raise RefusedError(f"{origin} is not a validation result: {error}") from error
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RefusedError(
                f"{origin} has result schema {version}; this MLOS reads up to {SCHEMA_VERSION}",
                field="schema_version",
                expected=f"<= {SCHEMA_VERSION}",
                got=str(version),
                hint="upgrade MLOS: pip install --upgrade mlos",
            )
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RefusedError(
                f"{origin} is not a valid result: {where}: {first['msg']}", field=where
            ) from error


def divergence_bound(measure: ParityMeasure) -> float | None:
    """The mean divergence in nats that is allowed, where it is what the measure was held to."""
    row = TOLERANCES.get(measure.tolerance)
    return row.kl_divergence if row is not None and measure.kl_divergence is not None else None


def share_of_tolerance(measure: ParityMeasure) -> float:
    """How much of what is allowed the error takes; more than 1 is too much.

    Where the tolerance bounds no single element, it is the divergence over the one allowed, else the cosine's
    distance from 1 over the one allowed.
    """
    if measure.worst_ratio is not None:
        return measure.worst_ratio
    bound = divergence_bound(measure)
    if bound is not None and measure.kl_divergence is not None:
        return max(measure.kl_divergence, 0.0) / bound
    return max(1 - measure.cosine, 0.0) / (1 - tolerance_named(measure.tolerance).cosine)


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs in the files named, and in the ``*.json`` of the folders named; newest first, each once.

    Raises:
        NotFoundError: if a path is not there, or there is no result at all.
        RefusedError: if a file is not a result this MLOS can read.
    """
    named = list(paths)
    files: list[Path] = []
    for path in named:
        if not path.exists():
            raise NotFoundError(f"no such result: {path}", hint="run `mlos validate` first")
        files += sorted(path.glob("*.json")) if path.is_dir() else [path]
    runs = {run.run: run for run in (Run.parse(file.read_bytes(), str(file)) for file in files)}
    if not runs:
        where = ", ".join(str(path) for path in named)
        raise NotFoundError(f"no results in {where}", hint="run `mlos validate` first")
    return sorted(runs.values(), key=lambda run: run.started, reverse=True)


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
