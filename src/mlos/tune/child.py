"""The child of :mod:`mlos.tune.tuner`: proves one candidate, then times it beside the default."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from mlos.engines import Engine, open_model
from mlos.errors import MlosError
from mlos.host.child import Emit, serve
from mlos.model import Manifest
from mlos.parity import tolerance_named
from mlos.tasks import Silence, SinglePass
from mlos.tasks.batching import Member, apart, batch_axis, together
from mlos.tasks.proof import Proof
from mlos.tune.paired import LEAST_GROUPS, Group, Run, groups
from mlos.tune.shapes import shapes_of

GIVE_UP = 1.25
"""A candidate that took so much longer in each of the first groups is not timed any further."""


class Side(msgspec.Struct, frozen=True):
    """A candidate as the child needs it: a package's folder and manifest, and how to open it."""

    folder: str
    manifest: dict[str, Any]
    engine: str
    precision: str
    threads: int
    streams: int = 1
    cache: str | None = None

    def open(self) -> Engine:
        """The opened engine; with several streams, as it is for several runs at once."""
        return open_model(
            Path(self.folder),
            Manifest.model_validate(self.manifest).artifact,
            max(1, self.threads // self.streams),
            engine=self.engine,
            precision=self.precision,
            cache=None if self.cache is None else Path(self.cache),
            streams=self.streams,
        )


class Order(msgspec.Struct, frozen=True):
    """What the parent asks for: a proof and a comparison, or, without a reference, to leave compiled forms."""

    candidate: Side
    tolerance: str
    reference: Side | None = None
    pairs: int = 0
    seed: int = 0


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Follow an :class:`Order`."""
    order = msgspec.convert(request, Order)
    manifest = Manifest.model_validate(order.candidate.manifest)
    proof = Proof(Path(order.candidate.folder), manifest, tolerance_named(order.tolerance))
    candidate = order.candidate.open()
    if order.reference is None:
        _ask_all(proof, candidate)
        proof.hold(order.candidate.open())
        return {}
    measures = proof.hold(candidate)
    emit({"proved": 1})
    batched = _batched(proof, candidate, manifest)
    reference = order.reference.open()
    cases = {case.name: (case, proof.asked[case.name][1]) for case in proof.golden.cases}
    shapes = shapes_of(manifest, cases)
    runs = order.candidate.streams
    found: list[Group] = []
    with ThreadPoolExecutor(runs) as threads:
        for group in groups(
            {
                shape.name: _in_a_row(partial(reference.run, shape.inputs, shape.outputs), runs)
                for shape in shapes
            },
            {
                shape.name: _at_once(partial(candidate.run, shape.inputs, shape.outputs), runs, threads)
                for shape in shapes
            },
            order.pairs,
            order.seed,
        ):
            found.append(group)
            emit({"timed": 1})
            if len(found) == LEAST_GROUPS and _hopeless(found):
                break
    return {
        "measures": [measure.model_dump(mode="json") for measure in measures],
        "groups": [group.model_dump(mode="json") for group in found],
        "shapes": [[shape.name, shape.single, shape.batch, shape.length] for shape in shapes],
        "batched": batched,
        "version": candidate.version,
    }


def _in_a_row(run: Run, times: int) -> Run:
    return run if times == 1 else lambda: [run() for _ in range(times)]


def _at_once(run: Run, times: int, threads: Executor) -> Run:
    return (
        run if times == 1 else lambda: [each.result() for each in [threads.submit(run) for _ in range(times)]]
    )


def _hopeless(found: Sequence[Group]) -> bool:
    return all(group.log_ratio > math.log(GIVE_UP) for group in found)


def _ask_all(proof: Proof, engine: Engine) -> None:
    """Ask every golden request as a server would, so that what is compiled on the way is kept."""
    for task, prepared in proof.asked.values():
        task.compute(engine, prepared, Silence())


def _batched(proof: Proof, engine: Engine, manifest: Manifest) -> str | None:
    """Why requests may not be computed together; None if their answers stay the framework's.

    All golden requests that may go together do, however different their lengths are.
    """
    if batch_axis(manifest.artifact) is None:
        return "the file does not say that the first axis of its tensors counts requests"
    kinds: dict[Any, list[Member]] = {}
    for number, case in enumerate(proof.golden.cases):
        task, prepared = proof.asked[case.name]
        if isinstance(task, SinglePass):
            member = Member(number, prepared)
            kinds.setdefault((task.name, member.kind), []).append(member)
    several = [group for group in kinds.values() if len(group) > 1]
    if not several:
        return "no two of the golden requests can be computed together"
    for group in several:
        try:
            answers = engine.run(together(group), group[0].prepared.outputs)
            for member, own in zip(group, apart(group, answers, manifest.artifact), strict=True):
                case = proof.golden.cases[member.number]
                proof.check(case, proof.asked[case.name][0].postprocess(member.prepared, own))
        except MlosError as error:
            return f"together they are answered otherwise: {error.message}"
    return None


if __name__ == "__main__":
    serve(main)
