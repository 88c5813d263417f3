"""The report: one self-contained page, drawn from results and from nothing else.

The page needs no network and allows itself none (its content security policy names the hash of its one
script). Every run, model and filter has a permalink in the hash; without JavaScript all runs are shown in full.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from mlos.validation import drawing
from mlos.validation.results import Row, Run, divergence_bound, share_of_tolerance, write_atomically
from mlos.validation.stats import minimum_samples
from mlos.validation.tiers import CLAIMS
from mlos.validation.timing import PERCENTILES

RUNS_SHOWN = 10
SAMPLES_CARRIED = 400_000
"""How many raw samples a page carries within itself, newest runs first; the result files hold them all."""
WEIGHTS = {
    "hub": "published weights, from the hub",
    "trained": "trained weights, carried by a Python package",
    "seeded": "the published architecture, random weights from a seed: parity and speed count, quality not",
    "local": "a user's own file",
}
UNLISTED = "other"
"""The category of a model that the catalogue does not have."""


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
    shown = runs[:RUNS_SHOWN]
    environment.globals |= {
        "claims": CLAIMS,
        "weights": WEIGHTS,
        "percentiles": {f"p{p:g}": p for p in PERCENTILES},
        "minimum_samples": minimum_samples,
        "divergence_bound": divergence_bound,
        "share_of_tolerance": share_of_tolerance,
        "category": category,
        "draw": drawing,
        "samples": _samples(shown),
    }
    environment.filters |= {
        "number": drawing.number,
        "measured": drawing.measured,
        "span": drawing.span,
        "sized": drawing.sized,
        "lasted": drawing.lasted,
        "category_of": category,
        "slug": lambda status: str(status).replace(" ", "-"),
    }
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        runs=shown,
        style=Markup(style),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        script_hash=digest,
    )


def category(row: Row) -> str:
    """What the row is filed under: the catalogue's family of the model."""
    return row.family or UNLISTED


def samples_link(row: Row) -> str:
    """The raw samples as a file that the page carries within itself."""
    data: dict[str, object] = {"model": row.name, "digest": row.digest, "unit": "ms"}
    if row.latency is not None:
        data |= {
            "client_end_to_end": row.latency.samples_ms,
            "server_stages_sum": row.latency.server_ms,
            "case_names": row.latency.case_names,
            "cases": row.latency.cases,
        }
    if row.generation is not None:
        data["generation"] = row.generation.raw
    content = json.dumps(data, separators=(",", ":")).encode()
    return "data:application/json;base64," + base64.b64encode(content).decode()


def _samples(runs: Sequence[Run]) -> dict[tuple[str, int], str]:
    """Links to raw samples by run and place of the row, as far as a page should carry them."""
    links: dict[tuple[str, int], str] = {}
    left = SAMPLES_CARRIED
    for run in runs:
        for at, row in enumerate(run.rows):
            count = (row.latency.n if row.latency else 0) + (row.generation.n if row.generation else 0)
            left -= count
            if count and left >= 0:
                links[run.run, at] = samples_link(row)
    return links
