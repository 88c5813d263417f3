"""MLOS beside other servers, in one run on one host.

    python -m benchmarks [--workload trivial --workload minilm] [--peer plain --peer mlserver] [--pairs 10]

Progress goes to stderr, the tables to stdout, everything that was seen to one JSON file. ``docs/benchmarks.md``
says how it is measured and what may be said of the numbers.
"""

from __future__ import annotations

import argparse
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from benchmarks.comparing import Rounds, holm
from benchmarks.results import LEAST_PAIRS, Result, WorkloadResult, table_of
from benchmarks.sides import peer_names, side_named
from benchmarks.workloads import (
    WORKLOADS,
    Workload,
    package_of,
    requests_of,
    settings_of,
    workload_named,
    written_of,
)
from mlos.console import Console
from mlos.errors import MlosError, UsageError
from mlos.host.environment import record
from mlos.tune import paired

QUICK_PAIRS, QUICK_SECONDS = 2, 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; 0 if every side that was named could be compared, 1 if not, else an error's own status."""
    asked, console = _asked(arguments), Console()
    try:
        for result in _run(asked, console):
            path = result.save(asked.results)  # after each workload: a run that is cut short is not lost
    except MlosError as error:
        console.error(error)
        return error.exit_status
    for found in result.workloads:
        console.result(found.model_dump(mode="json"), partial(table_of, found))
    if result.pairs < LEAST_PAIRS:
        console.note(f"{result.pairs} pairs: no claim" if result.pairs else "answers checked, nothing timed")
    console.note(f"result: {path}")
    failed = any(found.error or any(side.error for side in found.sides) for found in result.workloads)
    return int(failed)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="MLOS beside other servers.")
    parser.add_argument("--workload", action="append", help=f"of {', '.join(WORKLOADS)}; all if none is named")
    parser.add_argument("--peer", action="append", help=f"of {', '.join(peer_names())}; all if none is named")
    parser.add_argument(
        "--ours",
        action="append",
        default=[],
        metavar="FLAGS",
        help="also our server with these flags, in lines of its own, for example '--precision auto'",
    )
    parser.add_argument(
        "--pairs", type=int, default=LEAST_PAIRS, help="groups of blocks, each side twice in each"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of a block, for each thing that is timed")
    parser.add_argument(
        "--quick", action="store_true", help="2 pairs of 1 s: shows that all works, claims nothing"
    )
    parser.add_argument("--things", action="append", help="only these, for example binary/16")
    parser.add_argument("--seed", type=int, default=None, help="of the requests and the orders; else drawn")
    parser.add_argument("--results", type=Path, default=Path("results/bench"), help="folder of the result")
    parser.add_argument(
        "--check", action="store_true", help="set up the peers and check their answers, time nothing"
    )
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.pairs, asked.seconds = QUICK_PAIRS, QUICK_SECONDS
    if asked.check:
        asked.pairs = 0
    elif asked.pairs < 2 or not asked.seconds > 0:
        parser.error("at least 2 pairs, of more than 0 seconds")
    return asked


def _run(asked: argparse.Namespace, console: Console) -> Iterator[Result]:
    """The result so far, after each workload."""
    paired.require()
    workloads = [workload_named(name) for name in asked.workload or WORKLOADS]
    names = ["mlos", *(f"mlos {flags}" for flags in asked.ours), *(asked.peer or peer_names())]
    sides = [side_named(name) for name in dict.fromkeys(names)]  # a wrong name is told before anything runs
    started = datetime.now(UTC)
    seed = secrets.randbits(31) if asked.seed is None else asked.seed
    environment = record()
    console.note(f"seed {seed}, environment {environment.id}")
    found = []
    for workload in workloads:
        try:
            found.append(_workload(workload, [side.name for side in sides], asked, seed, console))
        except MlosError as error:
            console.error(error)
            nothing = {"reference": workload.reference, "digest": "", "requests": 0}
            found.append(
                WorkloadResult(name=workload.name, about=workload.about, error=error.message, **nothing)
            )
        yield Result(
            run=f"{started:%Y%m%dT%H%M%SZ}",
            started=started,
            finished=datetime.now(UTC),
            command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
            seed=seed,
            pairs=asked.pairs,
            seconds=asked.seconds,
            environment=environment.model_dump(mode="json"),
            environment_id=environment.id,
            workloads=_corrected(found),
        )


def _corrected(found: Sequence[WorkloadResult]) -> tuple[WorkloadResult, ...]:
    """The same with the p of each comparison corrected for all of the run."""
    corrected = iter(holm([one for workload in found for one in workload.comparisons]))
    return tuple(
        workload.model_copy(update={"comparisons": tuple(next(corrected) for _ in workload.comparisons)})
        for workload in found
    )


def _workload(
    workload: Workload, names: Sequence[str], asked: argparse.Namespace, seed: int, console: Console
) -> WorkloadResult:
    things = [
        (wire, clients)
        for wire, clients in workload.things
        if not asked.things or f"{wire}/{clients}" in asked.things
    ]
    if not things:
        known = ", ".join(f"{wire}/{clients}" for wire, clients in workload.things)
        raise UsageError(f"{workload.name} is not asked so", field="things", expected=known)
    wires = {wire for wire, _ in things}
    silent = [name for name in names if not wires & side_named(name).speaks]
    if silent:
        console.note(f"{workload.name}: not asked by {', '.join(sorted(wires))}: {', '.join(silent)}")
    package = package_of(workload)
    requests = requests_of(workload, package, seed)
    rounds = Rounds(
        [side_named(name) for name in names if name not in silent],
        things,
        requests,
        package,
        settings_of(workload, package),
        lambda said: console.note(f"{workload.name}: {said}"),
    )
    rounds.admit()
    written = written_of(workload, package) if asked.pairs else None
    rounds.run(asked.pairs, asked.seconds, seed)
    return WorkloadResult(
        name=workload.name,
        about=workload.about,
        reference=package.reference,
        digest=package.digest,
        requests=len(requests),
        written=written,
        sides=rounds.records,
        comparisons=tuple(rounds.compared()),
        blocks=tuple(rounds.blocks),
    )


if __name__ == "__main__":
    # As Ctrl-C, which event loops know how to end by; else the server of the block would outlive us.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(main())
