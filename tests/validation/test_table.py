from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table
from tests.validation import example

from mlos.validation import table
from mlos.validation.results import Run


def shown(made: Table) -> str:
    console = Console(file=io.StringIO(), width=300)
    console.print(made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def line(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_a_release_has_its_numbers_with_intervals() -> None:
    run = example.run()
    text = shown(table.of_run(run))
    assert "release tier: numbers with intervals" in text
    bert = run.rows[0].latency
    assert bert is not None
    interval = bert.intervals["p50_ms"]
    assert f"{bert.p50_ms:.2f} ({interval.low:.2f}-{interval.high:.2f})" in line(text, "bert")
    assert "KL 0.011 / 0.03 (Q4_K_M)" in line(text, "tinyllama")
    assert "tokens/s" in text
    assert "cached" in line(text, "minilm")
    assert "failed" in line(text, "vit")
    assert "not run" in line(text, "llama-3.2-1b")


def test_a_smoke_run_claims_nothing_and_shows_what_speaks_against_its_numbers(run: Run) -> None:
    latency = run.rows[0].latency
    assert latency is not None
    unstable = run.rows[0].model_copy(update={"latency": latency.model_copy(update={"stable": False})})
    text = shown(table.of_run(run.model_copy(update={"rows": (unstable, run.rows[1])})))
    assert "no performance claim" in text
    assert "UNSTABLE" in line(text, "bert")
    assert "UNSTABLE" not in line(text, "minilm")
    assert "tokens/s" not in text, "nothing here generates"
