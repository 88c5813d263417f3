from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from mlos.model import ParityMeasure
from mlos.validation.results import (
    CaseParity,
    Gate,
    Install,
    Load,
    Parity,
    ResultCheck,
    Row,
    Run,
)
from mlos.validation.timing import Latency, Window


def measured(error: float, ratio: float) -> ParityMeasure:
    return ParityMeasure(
        output="logits",
        max_abs_error=error,
        atol=1e-4,
        rtol=1e-3,
        worst_ratio=ratio,
        cosine=0.9999999,
        argmax_agreement=1.0,
        tolerance="fp32",
        passed=ratio <= 1,
    )


def row(name: str = "bert", *, ratio: float = 0.02, samples: int = 70) -> Row:
    times = [60 + number % 7 for number in range(samples)]
    measures = (measured(2.1e-5, ratio),)
    failed = ratio > 1
    return Row(
        name=name,
        requested="seeded/google/bert-base-uncased",
        reference="seeded/google/bert-base-uncased@" + "ab" * 32,
        digest="cd" * 32,
        weights="seeded",
        weights_reason="seeded: the hub does not answer",
        licence="apache-2.0",
        tasks=("fill-mask", "embeddings"),
        format="onnx",
        engine="onnxruntime",
        precision="fp32",
        mode="userspace",
        status="failed" if failed else "passed",
        reason="parity: logits differ" if failed else None,
        gates=(Gate(name="parity", status="failed" if failed else "passed", detail="logits"),),
        install=Install(cached=False, seconds={"download": 1.5, "convert": 30.0}, total_seconds=33.0),
        load=Load(worker_seconds=1.0, ready_seconds=1.6),
        parity=Parity(
            tolerance="fp32",
            framework={"torch": "2.13.0"},
            over_http=measures,
            cases=(CaseParity(case="short", measures=measures),),
        ),
        results=(ResultCheck(case="short", task="embeddings", passed=True),),
        latency=Latency.measured(
            times,
            [time - 1.0 for time in times],
            seconds=4.0,
            stages_ms={"queue": 0.1, "compute": 58.0},
            warmup=(Window(n=9, throughput=17.0, p90_ms=66.0),),
            stable=True,
            checked=10,
            steal_share=0.0,
        ),
        memory_bytes=612_000_000,
        commands={"all": "mlos validate --model seeded/google/bert-base-uncased"},
    )


def run_of(*rows: Row) -> Run:
    started = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Run(
        run="20260102T030405Z",
        started=started,
        finished=started + timedelta(seconds=90),
        command="mlos validate",
        tier="smoke",
        seed=7,
        environment={"cpu": "a processor", "id": "0123456789ab", "flags": ["avx2"], "governor": None},
        versions={"mlos": "0.1.0"},
        rows=rows,
    )


@pytest.fixture
def run() -> Run:
    return run_of(row(), row("minilm", ratio=300.0))
