"""A model of several graphs that stand side by side, as one engine: each is run if its outputs are asked for.

Such are an encoder of texts and one of images that share a space: neither takes what the other gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from mlos.engines.encoder_decoder import PARTS as ENCODER_DECODER
from mlos.engines.engine import Engine, interruptible
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.errors import RefusedError
from mlos.model import Artifact, ModelFormat, Tensors


class SideBySide:
    """Opened graphs behind the protocol of one engine; as a whole it has the inputs and outputs of all."""

    formats: ClassVar[frozenset[ModelFormat]] = frozenset()

    def __init__(self, artifact: Artifact, parts: Mapping[str, Engine]) -> None:
        for kind in ("inputs", "outputs"):
            names = sorted(spec.name for part in artifact.parts.values() for spec in getattr(part, kind))
            if names != sorted({spec.name for spec in getattr(artifact, kind)}):
                raise RefusedError(
                    f"the {kind} of a model of several graphs are not those of its parts",
                    field=f"artifact.{kind}",
                    expected=", ".join(names),
                    got=", ".join(spec.name for spec in getattr(artifact, kind)),
                )
        self._artifact, self._parts = artifact, dict(parts)

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Not how it comes about: :func:`mlos.engines.open_model` opens the parts."""
        raise RefusedError("a model of several graphs is opened part by part", field="artifact.parts")

    @property
    def name(self) -> str:
        """The engine that computes the parts."""
        return next(iter(self._parts.values())).name

    @property
    def version(self) -> str:
        """Version of that engine's library."""
        return next(iter(self._parts.values())).version

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """See :class:`mlos.engines.Engine`; only the inputs of the parts that are run are taken."""
        asked = asked_of(self._artifact, inputs, outputs)
        check_inputs(asked.inputs, inputs)
        wanted = [spec.name for spec in asked.outputs] if outputs is None else list(outputs)
        check_outputs(asked.outputs, wanted)
        answers: dict[str, NDArray[Any]] = {}
        for name, part in self._artifact.parts.items():
            given = {spec.name for spec in part.outputs}
            if own := [each for each in wanted if each in given]:
                answers |= self._parts[name].run({spec.name: inputs[spec.name] for spec in part.inputs}, own)
        return {each: answers[each] for each in wanted}

    def interrupt(self, thread: int) -> None:
        """See :class:`mlos.engines.InterruptibleEngine`; a part that cannot be interrupted goes on."""
        for part in self._parts.values():
            if interruptible(part):
                part.interrupt(thread)


def asked_of(artifact: Artifact, inputs: Collection[str], outputs: Sequence[str] | None) -> Artifact:
    """``artifact`` with the inputs and outputs of those parts alone that a request is about.

    Those are the parts whose outputs it names; where it names none of theirs, those of which it brings an
    input. What has no parts, or parts that need each other, is asked as a whole.
    """
    if not artifact.parts or set(artifact.parts) == ENCODER_DECODER:
        return artifact
    named, held = set(outputs or ()), set(inputs)
    parts = [part for part in artifact.parts.values() if named & {spec.name for spec in part.outputs}] or [
        part for part in artifact.parts.values() if held & {spec.name for spec in part.inputs}
    ]
    if not parts:
        return artifact
    return artifact.model_copy(
        update={
            "inputs": tuple(spec for part in parts for spec in part.inputs),
            "outputs": tuple(spec for part in parts for spec in part.outputs),
        }
    )
