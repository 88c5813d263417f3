"""The report: one self-contained page, drawn from results and from nothing else.

The page needs no network and allows itself none (its content security policy names the hash of its one
script). Every run and model has a permalink in the hash; without JavaScript all runs are shown in full.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from mlos.validation.results import Row, Run, share_of_tolerance, write_atomically
from mlos.validation.stats import minimum_samples
from mlos.validation.tiers import CLAIMS
from mlos.validation.timing import PERCENTILES, Latency

RUNS_SHOWN = 10
BINS = 48
_STAGES = ("read", "parse", "queue", "preprocess", "copy_in", "compute", "copy_out", "postprocess")
_INSTALL_STAGES = ("download", "verify", "convert", "parity", "package")
WEIGHTS = {
    "hub": "published weights, from the hub",
    "trained": "trained weights, carried by a Python package",
    "seeded": "the published architecture, random weights from a seed: parity and speed count, quality not",
    "local": "a user's own file",
}


@dataclass(frozen=True)
class Part:
    """One part of a bar: its name, amount, and share of the whole from 0 to 1."""

    name: str
    amount: float
    share: float


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: left edge in ms, samples in it, and height as a share of the tallest."""

    left_ms: float
    count: int
    share: float


def write(runs: Sequence[Run], path: Path) -> Path:
    """Draw ``runs`` (newest first; the newest ten are shown) to ``path``, wholly or not at all."""
    write_atomically(path, render(runs))
    return path


def render(runs: Sequence[Run]) -> str:
    """The page as HTML."""
    templates = files("mlos.validation") / "templates"
    script, style = ((templates / name).read_text("utf-8") for name in ("report.js", "report.css"))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "claims": CLAIMS,
        "weights": WEIGHTS,
        "percentiles": PERCENTILES,
        "minimum_samples": minimum_samples,
        "install_parts": install_parts,
        "stage_parts": stage_parts,
        "histogram": histogram,
        "closeness": closeness,
        "share_of_tolerance": share_of_tolerance,
        "samples_link": samples_link,
    }
    environment.filters |= {"number": number, "sized": sized}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        runs=runs[:RUNS_SHOWN],
        style=Markup(style),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        script_hash=digest,
    )


def stage_parts(latency: Latency) -> list[Part]:
    """The median stages of a request in ms, and the rest: what the client saw beyond them."""
    parts = {stage: latency.stages_ms.get(stage, 0.0) for stage in _STAGES} | latency.stages_ms
    parts["rest"] = max(latency.client_median_ms - sum(parts.values()), 0.0)
    return _parts(parts)


def install_parts(row: Row) -> list[Part]:
    """The seconds of the install that made the package, by stage."""
    seconds = row.install.seconds if row.install else {}
    return _parts({stage: seconds.get(stage, 0.0) for stage in _INSTALL_STAGES})


def histogram(latency: Latency) -> list[Bin]:
    """The raw samples in equal bins from the fastest to the slowest."""
    low, high = min(latency.samples_ms), max(latency.samples_ms)
    width = (high - low) / BINS or 1.0
    counts = [0] * BINS
    for sample in latency.samples_ms:
        counts[min(int((sample - low) / width), BINS - 1)] += 1
    return [Bin(low + at * width, count, count / max(counts)) for at, count in enumerate(counts)]


def closeness(ratio: float) -> float:
    """Where an error stands on a logarithmic bar: 0 at a millionth of its tolerance, 1 at ten times it."""
    return min(max((math.log10(max(ratio, 1e-6)) + 6) / 7, 0.0), 1.0)


def samples_link(row: Row) -> str:
    """The raw samples as a file that the page carries within itself."""
    assert row.latency is not None  # the template asks only for rows that have one
    data = {
        "model": row.name,
        "digest": row.digest,
        "unit": "ms",
        "client_end_to_end": row.latency.samples_ms,
        "server_stages_sum": row.latency.server_ms,
    }
    return "data:application/json;base64," + base64.b64encode(json.dumps(data).encode()).decode()


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits; n/a for none."""
    if value is None:
        return "n/a"
    return f"{value:.{digits}g}" if abs(value) < 1000 or not math.isfinite(value) else f"{value:,.0f}"


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


def _parts(amounts: dict[str, float]) -> list[Part]:
    whole = sum(amounts.values()) or 1.0
    return [Part(name, amount, amount / whole) for name, amount in amounts.items()]
