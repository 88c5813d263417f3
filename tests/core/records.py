"""Tuning records as a test wants them: what a real tuning would write, had it found this."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from mlos.engines import installed
from mlos.host.environment import record
from mlos.store import Package
from mlos.tune import Batching, Candidate, Ratio, Trial, Tuning
from mlos.tune.record import save

HALF = Ratio(ratio=0.5, low=0.49, high=0.51, n=10, floor=0.01)
SAME = Ratio(ratio=1.0, low=0.99, high=1.01, n=10, floor=0.01)


def write(
    home: Path,
    package: Package,
    engine: str,
    precision: str = "fp32",
    *,
    batching: Batching | None = None,
    streams: int = 1,
) -> Tuning:
    """A record in which ``engine`` took half the default's time, or is the default and nothing was faster.

    With several ``streams``, so many runs at once took half the time of as many in a row.
    """
    default = Candidate(digest=package.digest, engine="onnxruntime", precision="fp32", threads=1)
    best = default.model_copy(update={"engine": engine, "precision": precision})
    trials = [Trial(candidate=default, verdict="default", reason="", tolerance="fp32", ratio=SAME)]
    if best == default:
        trials[0] = trials[0].model_copy(update={"batching": batching})
    else:
        trials.append(
            Trial(
                candidate=best, verdict="faster", reason="", tolerance=precision, ratio=HALF, batching=batching
            )
        )
    if streams > 1:
        several = best.model_copy(update={"streams": streams})
        trials.append(Trial(candidate=several, verdict="faster", reason="", tolerance=precision, ratio=HALF))
    versions = installed()
    tuning = Tuning(
        model=package.name,
        digest=package.digest,
        precision="auto",
        tuned_at=datetime.now(UTC),
        mlos="0.1.0",
        engines={name: versions[name] for name in {"onnxruntime", engine} & versions.keys()},
        host=record(),
        seed=0,
        trials=tuple(trials),
    )
    save(home, tuning)
    return tuning
