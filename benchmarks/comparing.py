"""The comparison: groups of blocks in mirrored random order, and what may be said of the ratios.

A group holds each side twice: all sides in a random order, then in that order backwards. So any two sides of it
stand as ABBA or BAAB, and what drifts meets both alike; all peers share our blocks. A block is a fresh process,
asked one thing after another. A group gives one log ratio for each thing and peer, of the geometric means of
both sides' two blocks; the two blocks of one side, the A/A arm, show what chance makes.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.client import MOST_STEAL, Timed, ask, drive
from benchmarks.results import Block, Comparison, SideRecord, histogram, verdict_of
from benchmarks.sides import Served, Side
from benchmarks.wire import Asked, Form, check, written
from mlos.errors import MlosError, ParityError
from mlos.store import Package
from mlos.tune.paired import ratio_of_logs
from mlos.validation import stats

Say = Callable[[str], None]
_UNSTABLE, _STOLEN = "UNSTABLE", "processor time stolen"
_REASONS = (_UNSTABLE, _STOLEN)
_CHECKED_FIRST = 8
"""Requests whose answers are looked at before anything is timed."""


@dataclass
class _Standing:
    side: Side
    made_of: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    checked: int = 0
    error: str | None = None

    def record(self) -> SideRecord:
        side = self.side
        return SideRecord(
            name=side.name,
            title=side.title,
            made_of=self.made_of,
            configuration=side.configuration,
            facts=self.facts,
            checked=self.checked,
            error=self.error,
        )


class Rounds:
    """The sides that stand, what they were asked, and the blocks there are so far."""

    def __init__(
        self,
        sides: Sequence[Side],
        things: Sequence[tuple[str, int]],
        requests: Sequence[Asked],
        package: Package,
        settings: Mapping[str, Any],
        say: Say,
    ) -> None:
        self._standing = {side.name: _Standing(side) for side in sides}
        self._things, self._requests = things, requests
        self._package, self._settings, self._say = package, settings, say
        self._written: dict[tuple[Form, str], list[bytes]] = {}
        self.blocks: list[Block] = []

    @property
    def records(self) -> tuple[SideRecord, ...]:
        """What became of each side."""
        return tuple(one.record() for one in self._standing.values())

    def admit(self) -> None:
        """Set each side up, start it once and hold its first answers to the right ones; who fails is out."""
        for one in self._standing.values():
            self._say(f"{one.side.name}: setting up and checking answers")
            try:
                one.made_of = one.side.prepare()
                with one.side.serving(self._package, self._settings) as served:
                    one.facts = dict(served.facts)
                    for wire in dict.fromkeys(wire for wire, _ in self._things if wire in served.wires):
                        self._check_first(one, served, wire)
            except MlosError as error:
                self._out(one, error)

    def run(self, groups: int, seconds: float, seed: int) -> None:
        """Time ``groups`` groups of blocks of those that stand."""
        chance = random.Random(seed)
        for group in range(groups):
            order = [name for name, one in self._standing.items() if one.error is None]
            chance.shuffle(order)
            orders = {
                thing: chance.sample(range(len(self._requests)), len(self._requests)) for thing in self._things
            }
            for place, name in enumerate([*order, *reversed(order)]):
                one = self._standing[name]
                if one.error is None:
                    self._say(f"group {group + 1} of {groups}, block {place + 1} of {2 * len(order)}: {name}")
                    try:
                        self._block(one, group, place, orders, seconds)
                    except MlosError as error:
                        self._out(one, error)

    def compared(self) -> list[Comparison]:
        """Ours with each peer, thing by thing; corrected for nothing yet (``p_holm`` is ``p``)."""
        ours = [name for name, one in self._standing.items() if one.side.ours]
        pairs = [(our, name) for our in ours for name, one in self._standing.items() if not one.side.ours]
        pairs += [(our, ours[0]) for our in ours[1:]]
        return [
            found
            for our, peer in pairs
            for wire, clients in self._things
            for measure in _measures(clients)
            if (found := compare(self.blocks, our, peer, f"{wire}/{clients}", measure)) is not None
        ]

    def _least(self, clients: int) -> int:
        """How many answers make a window: where requests are unlike each other, a whole round of them.

        A written text takes seconds, and is the mean of its many tokens already: there, one of each client.
        """
        if any(asked.continued is not None for asked in self._requests):
            return clients
        shapes = {tuple(array.shape for array in asked.tensors.values()) for asked in self._requests}
        return len(self._requests) if len(shapes) > 1 else 2 * clients

    def _out(self, one: _Standing, error: MlosError) -> None:
        one.error = error.message
        self._say(f"{one.side.name} is out: {error.message}")

    def _check_first(self, one: _Standing, served: Served, wire: str) -> None:
        form, path = served.wires[wire].form, served.wires[wire].path
        step = max(1, len(self._requests) // _CHECKED_FIRST)
        for asked in self._requests[::step]:
            body, length = ask(served.port, written(form, path, asked))
            self._hold(one, wire, served, asked, body, length)

    def _hold(
        self, one: _Standing, wire: str, served: Served, asked: Asked, body: bytes, length: str | None
    ) -> None:
        try:
            check(served.wires[wire].form, asked, body, length, served.tolerance)
        except ParityError as error:
            raise ParityError(f"asked by {wire}, {one.side.name} answers wrong: {error.message}") from error
        one.checked += 1

    def _block(
        self,
        one: _Standing,
        group: int,
        place: int,
        orders: Mapping[tuple[str, int], Sequence[int]],
        seconds: float,
    ) -> None:
        with one.side.serving(self._package, self._settings) as served:
            for wire, clients in self._things:
                if wire not in served.wires:
                    continue
                form, path = served.wires[wire].form, served.wires[wire].path
                if (form, path) not in self._written:
                    self._written[form, path] = [written(form, path, asked) for asked in self._requests]
                requests, order = self._written[form, path], orders[wire, clients]
                timed = drive(served.port, requests, order, clients, seconds, self._least(clients))
                for number, body, length in timed.answers:
                    self._hold(one, wire, served, self._requests[number], body, length)
                self.blocks.append(_block_of(timed, group, place, one.side.name, f"{wire}/{clients}"))


def compare(
    blocks: Sequence[Block],
    ours: str,
    peer: str,
    thing: str,
    measure: Literal["latency p50", "seconds per answer"],
) -> Comparison | None:
    """Our time over the peer's for one thing; None where no group holds both sides twice.

    A group with a block that never became steady, or in which the hypervisor took processor time, is left out.
    """
    from scipy import stats as scipy

    of_thing = [block for block in blocks if block.thing == thing and block.side in (ours, peer)]
    logs, noise, left_out = [], [], dict.fromkeys(_REASONS, 0)
    for group in sorted({block.group for block in of_thing}):
        blocks_of_group = [block for block in of_thing if block.group == group]
        if any(sum(block.side == side for block in blocks_of_group) != 2 for side in (ours, peer)):
            continue
        if any(not block.steady for block in blocks_of_group):
            left_out[_UNSTABLE] += 1
            continue
        if any(block.steal_share > MOST_STEAL for block in blocks_of_group):
            left_out[_STOLEN] += 1
            continue
        times = {
            side: [math.log(_time(block, measure)) for block in blocks_of_group if block.side == side]
            for side in (ours, peer)
        }
        logs.append(statistics.fmean(times[ours]) - statistics.fmean(times[peer]))
        noise += [one - other for one, other in times.values()]
    flags = tuple(f"{count} groups left out: {reason}" for reason, count in left_out.items() if count)
    if len(logs) < 2 and not flags:
        return None
    ratio = ratio_of_logs(logs, noise) if len(logs) > 1 else None
    p = float(scipy.wilcoxon(logs).pvalue) if any(logs) else 1.0
    return Comparison(
        ours=ours,
        peer=peer,
        thing=thing,
        measure=measure,
        ratio=ratio,
        p=p,
        p_holm=p,
        flags=flags,
        verdict=verdict_of(ratio, flags),
    )


def holm(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """The same with each ``p_holm`` corrected for all of them (Holm, 1979)."""
    corrected: dict[int, float] = {}
    least = 0.0
    for rank, place in enumerate(sorted(range(len(comparisons)), key=lambda at: comparisons[at].p)):
        least = max(least, min(1.0, comparisons[place].p * (len(comparisons) - rank)))
        corrected[place] = least
    return tuple(one.model_copy(update={"p_holm": corrected[at]}) for at, one in enumerate(comparisons))


def _measures(clients: int) -> tuple[Literal["latency p50", "seconds per answer"], ...]:
    """One client's latency says it all; of several, how many are answered is a question of its own."""
    return ("latency p50",) if clients == 1 else ("latency p50", "seconds per answer")


def _time(block: Block, measure: str) -> float:
    return block.median_ms if measure == "latency p50" else 1 / block.rate


def _block_of(timed: Timed, group: int, place: int, side: str, thing: str) -> Block:
    p90 = stats.percentile(timed.latencies, 90)
    return Block(
        group=group,
        place=place,
        side=side,
        thing=thing,
        n=len(timed.latencies),
        seconds=round(timed.seconds, 6),
        median_ms=round(1e3 * timed.median, 6),
        p90_ms=None if p90 is None else round(1e3 * p90, 6),
        rate=round(timed.rate, 6),
        steady=timed.steady,
        steal_share=round(timed.steal_share, 6),
        histogram=histogram(timed.latencies),
    )
