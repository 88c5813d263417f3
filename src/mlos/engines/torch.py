"""torch on the CPU: a program of its own operators, one after the other, as ``torch.export`` wrote it.

What computes is the framework itself, without the model's code and without transformers. Its time is what the
others are faster than, or not. It takes seconds to import, and some hundred megabytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mlos.engines.files import file_of
from mlos.engines.inputs import check_declared, check_inputs, check_outputs, check_threads
from mlos.engines.openmp import sleep_soon
from mlos.engines.refusals import one_line, refusal
from mlos.errors import MissingExtraError, RefusedError
from mlos.model import Artifact, ModelFormat, Tensors

FORMAT: ModelFormat = "pt2"
NAMES = "tensors.json"
"""The file in the archive that says how the program's inputs and outputs are called, in their order."""


class TorchEngine:
    """An exported program. For each set of outputs that is asked for, only what they need is computed."""

    name: ClassVar[str] = "torch"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({FORMAT})
    library_bytes: ClassVar[int] = 280 << 20
    """See :func:`mlos.engines.library_bytes`: about what torch 2.13 takes with a tiny program."""

    def __init__(self, module: Any, artifact: Artifact, names: dict[str, list[str]], threads: int) -> None:
        self._module, self._artifact, self._threads = module, artifact, threads
        self._inputs, self._outputs = names["inputs"], names["outputs"]
        self._giving: dict[tuple[str, ...], Any] = {}
        """The program by the outputs that it gives."""
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
            names = json.loads(extra[NAMES])
        except Exception as error:  # whatever it is: a damaged archive raises what its parts raise
            words = one_line(f"{type(error).__name__}: {error}")
            raise RefusedError(f"torch cannot load {artifact.path}: {words}", field=artifact.path) from error
        check_declared(artifact, names["inputs"], names["outputs"])
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
        # It takes no array that it could not write to.
        tensors = [torch.from_numpy(np.require(inputs[name], requirements=["C", "W"])) for name in self._inputs]
        try:
            with torch.inference_mode():
                answers = self._for(tuple(wanted))(*tensors)
        except (RuntimeError, IndexError) as error:
            raise refusal("torch", one_line(str(error)), of_these_tensors=True) from error
        return {name: answer.numpy() for name, answer in zip(wanted, answers, strict=True)}

    def _for(self, wanted: tuple[str, ...]) -> Any:
        """The program without what none of the outputs ``wanted`` needs; its weights are shared."""
        with self._trimming:
            if wanted not in self._giving:
                fx = _torch().fx
                graph = fx.Graph()
                all_of_them = graph.graph_copy(self._module.graph, {})
                graph.output(tuple(all_of_them[self._outputs.index(name)] for name in wanted))
                graph.eliminate_dead_code()
                self._giving[wanted] = fx.GraphModule(self._module, graph)
            return self._giving[wanted]

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
