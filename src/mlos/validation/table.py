"""A plan and a run as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mlos.model import ParityMeasure
from mlos.validation import results
from mlos.validation.plan import PlannedModel
from mlos.validation.tiers import CLAIMS
from mlos.validation.timing import Generation, Latency


def of_plan(planned: Sequence[PlannedModel]) -> Table:
    """What would be validated."""
    table = Table("model", "reference", "task", "weights", box=None)
    for one in planned:
        table.add_row(one.name, one.reference, one.task, one.weights_reason)
    return table


def of_run(run: results.Run) -> Table:
    """What was found, one line per model; speeds with their intervals where the tier claims any."""
    claim = "pass or fail, no performance claim" if run.tier == "smoke" else CLAIMS[run.tier]
    generates = any(row.generation for row in run.rows)
    table = Table(title=f"{run.tier} tier: {claim}", title_justify="left", box=None)
    for column in ("model", "weights", "task", "format", "engine", "parity error / tolerance"):
        table.add_column(column)
    columns = ["p50 ms", *(["first token ms", "tokens/s"] if generates else [])]
    for column in (*columns, "install s", "load s", "memory MB", "status"):
        table.add_column(column, justify="right")
    for row in run.rows:
        worst = row.parity.worst if row.parity else None
        latency, memory = row.latency, row.peak_memory_bytes or row.memory_bytes
        speeds = [_speed(latency, "p50_ms") + _flags(latency) if latency else "n/a"]
        if generates:
            speeds += _generation(row)
        table.add_row(
            row.name,
            row.weights or "-",
            ", ".join(row.tasks) or "-",
            row.format or "-",
            row.engine or "-",
            _parity(worst) if worst else "-",
            *speeds,
            _install_seconds(row),
            f"{row.load.ready_seconds:.1f}" if row.load else "-",
            f"{memory / 1e6:.0f}" if memory else "-",
            f"[{'green' if row.status == 'passed' else 'red'}]{row.status}[/]",
        )
    return table


def _generation(row: results.Row) -> list[str]:
    found = row.generation
    if found is None:
        return ["-", "-"]
    return [_speed(found, "ttft_p50_ms"), _speed(found, "tokens_per_second") + _flags(found)]


def _flags(found: Latency | Generation) -> str:
    """The first word of whatever speaks against the numbers; why stands in the report."""
    return "".join(f" {flag.split()[0].rstrip(':').upper()}" for flag in found.flags)


def _speed(found: Latency | Generation, field: str) -> str:
    value, interval = getattr(found, field), found.intervals.get(field)
    if value is None:
        return "n/a"
    return f"{value:.2f}" + (f" ({interval.low:.2f}-{interval.high:.2f})" if interval else "")


def _parity(worst: ParityMeasure) -> str:
    if worst.atol is not None:
        return f"{worst.max_abs_error:.2g} / {worst.atol:g} ({worst.tolerance})"
    bound = results.divergence_bound(worst)
    if bound is not None:
        return f"KL {worst.kl_divergence:.2g} / {bound:g} ({worst.tolerance})"
    return f"cosine {worst.cosine:.6f} ({worst.tolerance})"


def _install_seconds(row: results.Row) -> str:
    if row.install is None:
        return "-"
    return "cached" if row.install.cached else f"{row.install.total_seconds:.1f}"
