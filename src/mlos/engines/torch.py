"""torch on the CPU: a program of its own operators, one after the other, as ``torch.export`` wrote it.

What computes is the framework itself, without the model's code and without transformers. Its time is what the
others are faster than, or not. It takes seconds to import, and some hundred megabytes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
from numpy.typing import NDArray

from mlos.engines.files import file_of
from mlos.engines.inputs import check_declared, check_inputs, check_outputs, check_threads
from mlos.engines.openmp import sleep_soon
from mlos.engines.refusals import one_line, refusal
from mlos.errors import InvalidInputError, MissingExtraError, RefusedError
from mlos.model import Artifact, ModelFormat, Tensors

FORMAT: ModelFormat = "pt2"
NAMES = "tensors.json"
"""The file in the archive that holds :class:`Names`."""
_MOST_PROGRAMS = 16
"""Sets of outputs for which a program is kept; whoever asks for others has all of them computed."""


class Names(msgspec.Struct, frozen=True):
    """What the archive's own format does not say: how the program's inputs and outputs are called, in order.

    ``lengths`` are, of each axis of each input, the least and the most that the program was exported for; None
    is any.
    """

    inputs: list[str]
    outputs: list[str]
    lengths: list[list[tuple[int, int | None]]]


class TorchEngine:
    """An exported program. For each set of outputs that is asked for, only what they need is computed."""

    name: ClassVar[str] = "torch"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({FORMAT})
    library_bytes: ClassVar[int] = 280 << 20
    """See :func:`mlos.engines.library_bytes`: about what torch 2.13 takes with a tiny program."""

    def __init__(self, module: Any, artifact: Artifact, names: Names, threads: int) -> None:
        self._module, self._artifact, self._names, self._threads = module, artifact, names, threads
        held = (attrgetter(node.target)(module) for node in module.graph.nodes if node.op == "get_attr")
        self._held = {tensor.untyped_storage().data_ptr() for tensor in held}
        """Where the memory of its weights and constants is."""
        self._programs: dict[frozenset[str], tuple[list[str], Any]] = {}
        """The program by what it is asked for, with the outputs that it gives in their order."""
        self._trimming = threading.Lock()

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Load the program of ``artifact`` from ``folder``.

        An archive can run code as it is loaded (:attr:`mlos.model.Artifact.runs_code`). Packages hold none but
        those that conversion wrote.

        Raises:
            MissingExtraError: if torch is not installed.
            RefusedError: if the file lies outside ``folder``, is not there, cannot be loaded, or takes and
                gives other tensors than the artifact declares.
        """
        torch = _torch()
        check_threads(threads)
        path, extra = file_of(folder, artifact), {NAMES: ""}
        try:
            with _no_temporary_folder():
                module = torch.export.load(path, extra_files=extra).module()
            names = msgspec.json.decode(extra[NAMES], type=Names)
        except Exception as error:  # whatever it is: a damaged archive raises what its parts raise
            words = one_line(f"{type(error).__name__}: {error}")
            raise RefusedError(f"torch cannot load {artifact.path}: {words}", field=artifact.path) from error
        check_declared(artifact, names.inputs, names.outputs)
        return cls(module, artifact, names, threads)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute the outputs named, or all of them.

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes.
            NoRoomError: if memory does not suffice.
        """
        torch = _torch()
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if torch.get_num_threads() != self._threads:  # of the whole process, where tuning opens two engines
            torch.set_num_threads(self._threads)
        self._check_lengths(inputs)
        given, program = self._giving(frozenset(wanted))
        try:
            with torch.inference_mode():
                # A copy, since a program may write to its inputs, or give them.
                tensors = [torch.tensor(inputs[name]) for name in self._names.inputs]
                answers = dict(zip(given, map(self._owned, program(*tensors)), strict=True))
        except (RuntimeError, IndexError, ValueError, AssertionError) as error:
            raise refusal("torch", one_line(str(error)), of_these_tensors=True) from error
        return {name: answers[name] for name in wanted}

    def _check_lengths(self, inputs: Tensors) -> None:
        """Refuse lengths that the program was not exported for: the model may go another way with them."""
        for name, bounds in zip(self._names.inputs, self._names.lengths, strict=True):
            for axis, (length, (least, most)) in enumerate(zip(inputs[name].shape, bounds, strict=True)):
                if not least <= length <= (length if most is None else most):
                    raise InvalidInputError(
                        f"input tensor '{name}': the model cannot take a length of {length} along axis {axis}",
                        field=f"inputs.{name}",
                        expected=f"{least} or more" if most is None else f"{least} to {most}",
                        got=str(length),
                    )

    def _owned(self, answer: Any) -> NDArray[Any]:
        """A tensor as an array that is not one of the program's own."""
        answer = answer.detach()
        array: NDArray[Any] = answer.numpy()
        return array.copy() if answer.untyped_storage().data_ptr() in self._held else array

    def _giving(self, wanted: frozenset[str]) -> tuple[list[str], Any]:
        """What gives the outputs ``wanted``, in which order, without what none of them needs."""
        with self._trimming:
            if wanted not in self._programs and len(self._programs) >= _MOST_PROGRAMS:
                wanted = frozenset(self._names.outputs)
            if wanted not in self._programs:
                fx = _torch().fx
                graph = fx.Graph()
                given = zip(self._names.outputs, graph.graph_copy(self._module.graph, {}), strict=True)
                kept = {name: node for name, node in given if name in wanted}
                graph.output(tuple(kept.values()))
                graph.eliminate_dead_code()
                self._programs[wanted] = list(kept), fx.GraphModule(self._module, graph)
            return self._programs[wanted]

    @property
    def version(self) -> str:
        """Version of torch."""
        return str(_torch().__version__)


@functools.cache
def _torch() -> Any:
    sleep_soon()
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError.of("torch", "running exported programs of torch") from error
    return torch


@contextlib.contextmanager
def _no_temporary_folder() -> Iterator[None]:
    """Let what would compile programs be imported, as loading one does, where no folder can be written to.

    It looks for one as it is imported. Nothing is compiled here: a folder that exists is enough.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)
    known, tempfile.tempdir = tempfile.tempdir, os.sep
    try:
        yield
    finally:
        tempfile.tempdir = known
