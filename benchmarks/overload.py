"""What a crowd costs those who are let in: their p99 at ten times the capacity, over that at the capacity.

    python -m benchmarks.overload [--workload minilm] [--pairs 10]

The capacity is how many requests a second are answered to 16 clients who ask again when they are answered. Then
blocks of Poisson arrivals alternate, as many as the capacity and ``--times`` as many. Who is refused (429,
503) is counted and has no latency; any other failure ends the run. Answers are held to the right ones. Texts
have the most tokens that the workload asks about, so that requests are alike. One server answers all blocks.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.arrivals import Arrived, arrive
from benchmarks.client import drive
from benchmarks.figures import alternate, arguments, at_least, said_of, show
from benchmarks.sides import Side, peer_names, side_named
from benchmarks.wire import check, written
from benchmarks.workloads import WORKLOADS, Workload, package_of, requests_of, settings_of, workload_named
from mlos.console import Console
from mlos.errors import MlosError, UsageError
from mlos.tune import paired
from mlos.validation import stats

CLIENTS = 16
LEAST_SAMPLES = stats.minimum_samples(99)
_LATE_SHARE = 0.1
"""Of a p99 that the client's own lateness may be."""


def overload(
    side: Side,
    what: Workload,
    pairs: int,
    times: float,
    samples: int,
    seconds: float,
    seed: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Find the capacity, alternate blocks at it and above it; what was found.

    Raises:
        MlosError: if the server cannot be set up, fails, or answers wrong.
    """
    if what.tokens is not None:
        what = dataclasses.replace(what, tokens=(what.tokens[1], what.tokens[1]))
    wire = what.things[0][0]
    if wire not in side.speaks:
        raise UsageError(f"{side.name} is not asked by {wire}", field="side", got=side.name)
    package = package_of(what)
    requests = requests_of(what, package, seed)
    say(f"{side.name}: setting up")
    side.prepare()
    found: dict[str, list[Arrived]] = {"capacity": [], "overload": []}
    with side.serving(package, settings_of(what, package)) as served:
        form, path = served.wires[wire].form, served.wires[wire].path
        bodies = [written(form, path, asked) for asked in requests]

        def hold(answers: Sequence[tuple[int, bytes, str | None]]) -> int:
            for number, body, length in answers:
                check(form, requests[number], body, length, served.tolerance)
            return len(answers)

        closed = drive(served.port, bodies, range(len(bodies)), CLIENTS, seconds, 2 * CLIENTS)
        checked = hold(closed.answers)
        say(f"{side.name}: {closed.rate:.1f} requests a second{'' if closed.steady else ', UNSTABLE'}")

        def block(name: str, rate: float) -> float:
            nonlocal checked
            number = sum(map(len, found.values()))
            arrived = arrive(served.port, bodies, rate, samples, seed + number)
            checked += hold(arrived.answers)
            found[name].append(arrived)
            return stats.quantile(arrived.latencies, 99)

        ratio = paired.ratio_of(
            list(
                alternate(
                    lambda: block("capacity", closed.rate),
                    lambda: block("overload", times * closed.rate),
                    pairs,
                    seed,
                )
            )
        )
    return {
        "workload": what.name,
        "digest": package.digest,
        "seed": seed,
        "side": side.title,
        "configuration": side.configuration,
        "capacity": round(closed.rate, 3),
        "steady": closed.steady,
        "times": times,
        "checked": checked,
        "blocks": {name: [_row(one) for one in blocks] for name, blocks in found.items()},
        "ratio": ratio.model_dump(),
    }


def _row(arrived: Arrived) -> dict[str, float | int]:
    return {
        "accepted": len(arrived.latencies),
        "refused": arrived.refused,
        "p50_ms": round(1e3 * stats.quantile(arrived.latencies, 50), 3),
        "p99_ms": round(1e3 * stats.quantile(arrived.latencies, 99), 3),
        "late_p99_ms": round(1e3 * stats.quantile(arrived.late, 99), 3),
    }


def lines_of(found: dict[str, Any]) -> dict[str, str]:
    """What a person reads of it, with what keeps it from being a claim."""
    lines, ratio = {}, paired.Ratio.model_validate(found["ratio"])
    doubts = [] if found["steady"] else ["the capacity was never steady"]
    for name, rows in found["blocks"].items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        times = 1 if name == "capacity" else found["times"]
        lines[name] = (
            f"{times * found['capacity']:.1f} requests a second: p99 {middle['p99_ms']:.4g} ms, p50 "
            f"{middle['p50_ms']:.4g} ms; {sum(row['accepted'] for row in rows)} accepted, "
            f"{sum(row['refused'] for row in rows)} refused; sent late by {middle['late_p99_ms']:.3g} ms (p99)"
        )
        if any(row["accepted"] < LEAST_SAMPLES for row in rows):
            doubts.append(f"no claim: a p99 needs {LEAST_SAMPLES} answers a block")
        if any(row["late_p99_ms"] > _LATE_SHARE * row["p99_ms"] for row in rows):
            doubts.append(f"{name}: the client itself was late")
    lines["overload / capacity"] = "; ".join((said_of(ratio), *dict.fromkeys(doubts)))
    return lines


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and print."""
    parser = arguments("overload", "Accepted requests at several times the capacity.")
    parser.add_argument("--workload", default="minilm", help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--side", default="mlos", help=f"of mlos, {', '.join(peer_names())}")
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity")
    parser.add_argument(
        "--samples", type=at_least(1), default=LEAST_SAMPLES, help="accepted requests of a block, at least"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="in which the capacity is found")
    asked, console = parser.parse_args(given), Console()
    try:
        paired.require()
        found = overload(
            side_named(asked.side), workload_named(asked.workload), asked.pairs, asked.times, asked.samples,
            asked.seconds, asked.seed, console.note,
        )  # fmt: skip
    except MlosError as error:
        console.error(error)
        return error.exit_status
    show(lines_of(found), found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
