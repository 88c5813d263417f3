"""What the page draws, as plain numbers: bars, histograms and positions, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlos.tune import Trial, Tuning
from mlos.validation import stats
from mlos.validation.intervals import Interval
from mlos.validation.results import Row
from mlos.validation.timing import Generation, Latency

BINS = 60
_TAIL = 99.0
_LONG_TAIL = 4.0
"""From how many medians on the slowest hundredth calls for a logarithmic axis."""
_NAME_WIDTH = 0.12
"""How much of an axis a percentile's name takes up."""
_STAGES = ("read", "parse", "queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess")
_INSTALL_STAGES = ("download", "verify", "convert", "parity", "package")
_LOAD_STAGES = ("start", "verify", "confine", "open", "warm_up")
REST = "rest"
"""What the named parts do not explain."""


@dataclass(frozen=True)
class Part:
    """One part of a bar: its name, amount, and share of the whole from 0 to 1."""

    name: str
    amount: float
    share: float


@dataclass(frozen=True)
class Mark:
    """A named value on an axis, with its interval where it has one; places are shares from 0 to 1.

    ``row`` is the line its name stands on, so that names of values close together do not cover one another.
    """

    name: str
    value: float
    place: float
    interval: Interval | None
    low: float
    high: float
    row: int


@dataclass(frozen=True)
class Case:
    """The samples of one golden request on the axis of all; places are shares from 0 to 1."""

    name: str
    n: int
    median_ms: float | None
    place: float
    low: float
    high: float


@dataclass(frozen=True)
class Histogram:
    """Samples in equal bins from the fastest up; the slowest, which would squeeze them, are only counted.

    Where the tail is long the axis is logarithmic and holds them all.
    """

    low_ms: float
    high_ms: float
    slowest_ms: float
    logarithmic: bool
    counts: tuple[int, ...]
    beyond: int

    def place(self, value: float) -> float:
        """Where a value stands on the axis, from 0 to 1; beyond it at its end."""
        return _place(value, self.low_ms, self.high_ms, self.logarithmic)

    @property
    def outline(self) -> str:
        """The bars as one SVG path, in a box of ``10 * BINS`` by 100."""
        tallest = max(self.counts) or 1
        bars = [(at * 10 + 1, max(96 * count / tallest, 1.5)) for at, count in enumerate(self.counts) if count]
        return "".join(f"M{left} 100v{-height:.1f}h8v{height:.1f}z" for left, height in bars)


def histogram(samples: Sequence[float]) -> Histogram:
    """At least one sample, binned up to a little beyond the slowest hundredth, or all of them by magnitude."""
    low, slowest = min(samples), max(samples)
    tail = stats.quantile(samples, _TAIL)
    logarithmic = low > 0 and tail > _LONG_TAIL * stats.quantile(samples, 50)
    high = slowest if logarithmic else min(slowest, tail + 0.25 * (tail - low))
    counts = [0] * BINS
    within = [sample for sample in samples if sample <= high]
    for sample in within:
        counts[min(int(_place(sample, low, high, logarithmic) * BINS), BINS - 1)] += 1
    return Histogram(low, high, slowest, logarithmic, tuple(counts), len(samples) - len(within))


def _place(value: float, low: float, high: float, logarithmic: bool) -> float:
    if high <= low:
        return 0.0
    if logarithmic:
        value, low, high = (math.log(max(number, low)) for number in (value, low, high))
    return min(max((value - low) / (high - low), 0.0), 1.0)


def marks(found: Latency | Generation, names: Mapping[str, str], axis: Histogram) -> list[Mark]:
    """The percentiles that may be printed, by the name to show and the field to take it from."""
    made: list[Mark] = []
    ends: list[float] = []  # of the last name on each row
    for name, field in names.items():
        value = getattr(found, field)
        if value is None:
            continue
        interval = found.intervals.get(field)
        low, high = (interval.low, interval.high) if interval else (value, value)
        place = axis.place(value)
        row = next((at for at, end in enumerate(ends) if end <= place), len(ends))
        ends[row : row + 1] = [place + _NAME_WIDTH]
        made.append(Mark(name, value, place, interval, axis.place(low), axis.place(high), row))
    return made


def cases(found: Latency | Generation, times: Sequence[float], axis: Histogram) -> list[Case]:
    """Each golden request's own samples: from the fastest to the slowest, and their median."""
    return [
        Case(
            name,
            len(samples),
            stats.percentile(samples, 50),
            axis.place(stats.quantile(samples, 50)),
            axis.place(min(samples)),
            axis.place(max(samples)),
        )
        for name, samples in found.by_case(times).items()
    ]


@dataclass(frozen=True)
class Comparison:
    """A candidate's time over the default's on an axis of all; places are shares from 0 to 1."""

    trial: Trial
    variant: bool
    place: float
    low: float
    high: float


def comparisons(tuning: Tuning) -> tuple[list[Comparison], float]:
    """The candidates that were timed, fastest first, and where the axis, which is logarithmic, has its 1."""
    timed = [(trial, trial.ratio) for trial in tuning.trials if trial.ratio is not None]
    ends = [1.0, *(end for _, ratio in timed for end in (ratio.low, ratio.high))]
    low, high = min(ends) / 1.05, max(ends) * 1.05
    made = [
        Comparison(
            trial,
            trial.candidate.digest != tuning.digest,
            *(_place(value, low, high, True) for value in (ratio.ratio, ratio.low, ratio.high)),
        )
        for trial, ratio in sorted(timed, key=lambda pair: pair[1].ratio)
    ]
    return made, _place(1.0, low, high, True)


def stage_parts(latency: Latency) -> list[Part]:
    """The stages of a typical request in ms, and the rest: what the client saw beyond them.

    Results of schema 1 have medians alone, which need not add up to the whole; their rest is too large then.
    """
    whole = latency.typical_client_ms if latency.typical_client_ms is not None else latency.client_median_ms
    stages = latency.typical_ms or latency.stages_ms
    parts = {stage: stages.get(stage, 0.0) for stage in _STAGES} | stages
    parts[REST] = max(whole - sum(parts.values()), 0.0)
    return _parts(parts)


def install_parts(row: Row) -> list[Part]:
    """The seconds of the install that made the package, by stage."""
    seconds = row.install.seconds if row.install else {}
    return _parts({stage: seconds.get(stage, 0.0) for stage in _INSTALL_STAGES} | seconds)


def load_parts(row: Row) -> list[Part]:
    """The seconds from the server's start to its readiness: the worker's stages, and the server's own time."""
    if row.load is None:
        return []
    stages = dict(row.load.stages) or {"worker": row.load.worker_seconds or 0.0}
    parts = {stage: stages.get(stage, 0.0) for stage in _LOAD_STAGES if stage in stages} | stages
    return _parts(parts | {"server": max(row.load.ready_seconds - sum(parts.values()), 0.0)})


def closeness(ratio: float) -> float:
    """Where an error stands on a logarithmic bar: 0 at a millionth of its tolerance, 1 at ten times it."""
    return min(max((math.log10(max(ratio, 1e-6)) + 6) / 7, 0.0), 1.0)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; n/a for none."""
    if value is None:
        return "n/a"
    return f"{value:.{digits}g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:,.0f}"


def measured(value: float | None) -> str:
    """A measured number with three digits that are kept even where they are zeros; n/a for none."""
    if value is None:
        return "n/a"
    size = abs(value)
    decimals = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{decimals}f}"


def span(interval: Interval | None) -> str:
    """An interval as a person reads it; nothing for none."""
    return f"{measured(interval.low)} – {measured(interval.high)}" if interval else ""  # noqa: RUF001  (a dash)


def sized(count: int | None) -> str:
    """Bytes as a person reads them, in decimal units."""
    if count is None:
        return "n/a"
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def lasted(seconds: float) -> str:
    """A length of time as a person reads it."""
    if seconds < 100:
        return f"{measured(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _parts(amounts: Mapping[str, float]) -> list[Part]:
    whole = sum(amounts.values()) or 1.0
    return [Part(name, amount, amount / whole) for name, amount in amounts.items()]
