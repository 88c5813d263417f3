"""One figure, taken in two ways in alternation: the order, arguments and output of the programs that do so.

Blocks come in groups of four, in random ABBA or BAAB order, as in :mod:`mlos.tune.paired`; but here a block
says its own figure, so that what goes before and after it is not in it. The table goes to stderr, one JSON
object, the last line, to stdout.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.results import LEAST_PAIRS
from mlos.host.environment import record
from mlos.tune.paired import Group, Ratio

Block = Callable[[], float]
"""One block; its figure, for example a time in seconds."""
_ONE = "figure"


def arguments(program: str, description: str) -> argparse.ArgumentParser:
    """What every such program can be asked."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{program}", description=description)
    parser.add_argument("--pairs", type=at_least(2), default=LEAST_PAIRS, help="groups of four blocks")
    parser.add_argument("--seed", type=int, default=0, help="of the requests and the orders")
    return parser


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, and no smaller one."""

    def number(said: str) -> int:
        if int(said) < least:
            raise argparse.ArgumentTypeError(f"{said} is less than {least}")
        return int(said)

    return number


def alternate(reference: Block, candidate: Block, pairs: int, seed: int) -> Iterator[Group]:
    """Group after group of two blocks of each."""
    chance = random.Random(seed)
    sides = {"reference": reference, "candidate": candidate}
    for _ in range(pairs):
        one, other = chance.sample(list(sides), 2)
        found: dict[str, list[float]] = {"reference": [], "candidate": []}
        for name in (one, other, other, one):
            found[name].append(sides[name]())
        yield Group.model_validate({name: {_ONE: both} for name, both in found.items()})


def said_of(ratio: Ratio) -> str:
    """A ratio in a line."""
    said = f"{ratio} (95 % BCa), n {ratio.n}, noise floor {ratio.floor:.1%}"
    return said if ratio.n >= LEAST_PAIRS else f"{said}; no claim: {ratio.n} of at least {LEAST_PAIRS} pairs"


def show(lines: Mapping[str, str], found: Mapping[str, Any]) -> None:
    """Print what a person reads, and the JSON with the environment it was found in."""
    width = max(map(len, lines))
    for name, said in lines.items():
        sys.stderr.write(f"{name:{width}}  {said}\n")
    sys.stdout.write(json.dumps({"environment": record().id, **found}, allow_nan=False) + "\n")
    sys.stdout.flush()
