"""The result of a comparison: one versioned JSON file with every block's samples, and the table drawn of it."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from rich.markup import escape
from rich.table import Table

from mlos.tune.paired import Ratio
from mlos.validation.results import write_atomically

SCHEMA_VERSION: Literal[1] = 1
LEAST_PAIRS = 10
"""Fewer claim nothing, whatever they show."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Frozen):
    """One stretch of one side in a fresh process. ``place`` is its place in its group's order."""

    group: int
    place: int
    side: str
    thing: str
    """How it was asked: the wire and the number of clients, as in ``binary/16``."""
    n: int
    seconds: float
    median_ms: float
    p90_ms: float | None
    rate: float
    """Answers per second."""
    steady: bool
    steal_share: float
    histogram: dict[str, int]
    """How many answers took so many microseconds, to three significant digits."""


class SideRecord(_Frozen):
    """One of those compared. ``error`` says why it is not, or from where on; word for word what it said."""

    name: str
    title: str
    made_of: str | None
    configuration: tuple[str, ...]
    facts: dict[str, str] = {}
    checked: int = 0
    """Answers that were held to the right ones."""
    error: str | None = None


class Comparison(_Frozen):
    """Our time over a peer's: below 1 we are faster."""

    ours: str
    peer: str
    thing: str
    measure: Literal["latency p50", "seconds per answer"]
    ratio: Ratio | None
    """None where fewer than two groups could be used."""
    p: float
    """Wilcoxon signed-rank, two-sided."""
    p_holm: float
    """The same, corrected for all comparisons of the run."""
    flags: tuple[str, ...]
    verdict: str


class Written(_Frozen):
    """What a language model's texts cost at the least: each of their tokens reads the file's bytes once."""

    tokens: int
    """Of each answer."""
    file_bytes: int
    read_rate: float
    """Bytes a second, measured in the run."""

    def share(self, tokens_per_second: float) -> float:
        """How much of what memory allows one text at a time this is."""
        return tokens_per_second * self.file_bytes / self.read_rate


class WorkloadResult(_Frozen):
    """What was found with one model."""

    name: str
    about: str
    reference: str
    digest: str
    requests: int
    written: Written | None = None
    """Of a language model whose texts were timed."""
    error: str | None = None
    sides: tuple[SideRecord, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    blocks: tuple[Block, ...] = ()


class Result(_Frozen):
    """One run of the comparison."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run: str
    started: datetime
    finished: datetime
    command: str
    seed: int
    pairs: int
    seconds: float
    environment: dict[str, Any]
    environment_id: str
    workloads: tuple[WorkloadResult, ...]

    def save(self, folder: Path) -> Path:
        """Write it under its own name: wholly or not at all."""
        path = folder / f"{self.run}.json"
        write_atomically(path, json.dumps(self.model_dump(mode="json"), allow_nan=False) + "\n")
        return path


def histogram(latencies: Sequence[float]) -> dict[str, int]:
    """Seconds as counts of microseconds, to three significant digits."""
    counted = Counter(f"{float(f'{1e6 * each:.3g}'):.0f}" for each in latencies)
    return dict(sorted(counted.items(), key=lambda item: int(item[0])))


def verdict_of(ratio: Ratio | None, flags: Sequence[str]) -> str:
    """What may be said, in the words of the measurement standard."""
    pairs = ratio.n if ratio is not None else 0
    if ratio is None or pairs < LEAST_PAIRS:
        return "; ".join((f"no claim: {pairs} of at least {LEAST_PAIRS} pairs", *flags))
    return "faster" if ratio.faster else "slower" if ratio.slower else "no difference found"


def table_of(found: WorkloadResult) -> Table:
    """One line for each comparison, and one for each side that could not be compared."""
    title = f"{found.name}: {found.about}\nours over the peer's time, below 1 is faster; 95 % BCa interval"
    caption = "\n".join(_tokens(found, found.written)) if found.written else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left", box=None)
    for column in ("ours", "peer", "asked", "measure"):
        table.add_column(column)
    for column in ("ours ms", "peer ms", "ratio", "noise floor", "pairs", "p (Holm)"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for one in found.comparisons:
        table.add_row(
            *(one.ours, one.peer, one.thing, one.measure),
            *(f"{_typical(found.blocks, side, one):.3g}" for side in (one.ours, one.peer)),
            *(
                (str(one.ratio), f"{one.ratio.floor:.1%}", str(one.ratio.n))
                if one.ratio
                else ("n/a", "n/a", "0")
            ),
            *(f"{one.p_holm:.2g}", one.verdict),
        )
    for side in found.sides:
        if side.error is not None:
            said = escape(side.error.splitlines()[0][:200])
            table.add_row("", side.name, "", "not compared", *[""] * 6, f"[red]{said}[/]")
        elif not found.comparisons:
            table.add_row("", side.name, "", f"{side.checked} answers right")
    return table


def _tokens(found: WorkloadResult, written: Written) -> list[str]:
    """Tokens per second of each side and thing; of one text at a time also the share that memory allows."""
    lines = []
    for side, thing in sorted({(block.side, block.thing) for block in found.blocks}):
        rates = [block.rate for block in found.blocks if (block.side, block.thing) == (side, thing)]
        rate = written.tokens * statistics.median(rates)
        line = f"{side} {thing}: {rate:.3g} tokens/s"
        if thing.endswith("/1"):
            line += f", {written.share(rate):.0%} of reading the file at {written.read_rate / 1e9:.3g} GB/s"
        lines.append(line)
    return lines


def _typical(blocks: Sequence[Block], side: str, of: Comparison) -> float:
    """The middle of the blocks' values in milliseconds."""
    values = sorted(
        block.median_ms if of.measure == "latency p50" else 1e3 / block.rate
        for block in blocks
        if block.side == side and block.thing == of.thing
    )
    return values[len(values) // 2]
