"""How a framework's model is written as a graph: what every exporter takes, and what it gives.

A family says what its model is a function of and which axes are free, and is handed an exporter:
:func:`~mlos.axon.convert.onnx_export.to_onnx`, or :func:`~mlos.axon.convert.pt2_export.to_pt2`. What an
exporter would write about the machine it ran on (stack traces with paths) is taken out: the same model gives
the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import torch

from mlos.errors import MlosError
from mlos.host.child import Emit
from mlos.model import Artifact, FileRole

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Of each input and output by name: its free axes by position, and what each is called."""


@dataclass(frozen=True)
class Exported:
    """What was written: its files with their roles, by which programs, and why the first way was not it."""

    artifact: Artifact
    files: tuple[tuple[str, FileRole], ...]
    tools: dict[str, str]
    fallback: str | None = None

    def tell(self, emit: Emit) -> None:
        """Warn where the first way failed."""
        if self.fallback:
            emit({"warning": f"exported with TorchScript; the newer exporter failed: {self.fallback}"})


class Exporter(Protocol):
    """One way to write a model."""

    def __call__(
        self,
        function: torch.nn.Module,
        inputs: Mapping[str, torch.Tensor],
        outputs: Sequence[str],
        axes: Axes,
        folder: Path,
        name: str = "model",
    ) -> Exported:
        """Write ``function`` into ``folder``, its files called ``name`` and what the format is known by.

        It takes the tensors of ``inputs`` in their order, as ``*tensors``, here as an example (no free axis of
        length 1, which an exporter could take for a constant), and gives a tuple of ``outputs``.

        Raises:
            MlosError: if an axis of ``axes`` came out fixed, or another one free.
        """
        ...


class Flat(torch.nn.Module):
    """The model as a function of tensors, in the order of ``inputs``, to a tuple of ``outputs``."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        given = self.model(**dict(zip(self._inputs, tensors, strict=True)), return_dict=True)
        return tuple(given[name] for name in self._outputs)


def check_free(name: str, shape: Sequence[int | str], free: Mapping[int, str]) -> None:
    """See that the tensor ``name``, which came out with ``shape``, is free along the axes ``free`` alone.

    Raises:
        MlosError: if it is not.
    """
    if [at for at, axis in enumerate(shape) if isinstance(axis, str)] != sorted(free):
        raise MlosError(
            f"the export of {name} has other free axes than it was to have",
            field=name,
            expected=str(dict(free)),
            got=str(list(shape)),
        )
