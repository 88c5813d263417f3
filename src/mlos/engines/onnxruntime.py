"""ONNX Runtime on the CPU: one session, a fixed number of threads, none of which spins between runs.

Most of what opening a file takes is work on the graph and the packing of its weights for this processor. Both
can be kept: then opening maps a file, whose pages all processes that map it share.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from mlos.engines.files import file_of
from mlos.engines.inputs import check_declared, check_inputs, check_outputs, check_threads
from mlos.engines.kept import KeptForm
from mlos.engines.refusals import one_line, refusal
from mlos.errors import CorruptError, MissingExtraError, RefusedError
from mlos.model import Artifact, ModelFormat, Tensors

_FATAL = 4
"""Severity from which the library logs; its errors reach us as exceptions and need no second line."""
_GRAPH, _WEIGHTS = "graph.onnx", "weights"
"""The files of a kept form."""
_KERNEL_REFUSED = "Non-zero status code returned while running"

_log = logging.getLogger(__name__)


class OnnxRuntimeEngine:
    """An ONNX file in an inference session. Custom operator libraries are never loaded."""

    name: ClassVar[str] = "onnxruntime"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx"})

    def __init__(self, session: Any, artifact: Artifact, version: str) -> None:
        self._session = session
        self._artifact = artifact
        self._version = version
        self._running: dict[int, Any] = {}
        """Options of the run that each thread is in."""

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Load the ONNX file of ``artifact`` from ``folder``.

        Raises:
            MissingExtraError: if ONNX Runtime is not installed.
            RefusedError: if the file lies outside ``folder``, is not there, cannot be loaded, or takes and
                gives other tensors than the artifact declares.
        """
        return cls.compiled(folder, artifact, threads, precision="fp32", cache=None)

    @classmethod
    def compiled(
        cls,
        folder: Path,
        artifact: Artifact,
        threads: int,
        *,
        precision: str,
        cache: Path | None,
        streams: int = 1,
    ) -> Self:
        """See :class:`mlos.engines.CompilingEngine`; it raises what :meth:`open` does.

        Runs of one session are computed at once as they are, so ``streams`` changes nothing.
        """
        onnxruntime = _onnxruntime()
        check_threads(threads)
        if precision != "fp32":
            raise RefusedError(
                f"onnxruntime computes {artifact.path} in its own precision, fp32, not in {precision}",
                field="precision",
                expected="fp32",
                got=precision,
            )
        path = file_of(folder, artifact)
        version = str(onnxruntime.__version__)
        session = None
        if cache is not None:
            session = _from_kept(KeptForm.of(path, cache, f"onnxruntime {version}"), path, threads)
        try:
            session = session or _session(path, _options(threads))
        except _library_errors() as error:
            raise RefusedError(
                f"ONNX Runtime cannot load {artifact.path}: {_reason(error)}", field=artifact.path
            ) from error
        check_declared(
            artifact,
            [node.name for node in session.get_inputs()],
            [node.name for node in session.get_outputs()],
        )
        return cls(session, artifact, version)

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """See :class:`mlos.engines.CompilingEngine`: none."""
        return ()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute the outputs named (all if None); only what they need is computed.

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes.
            WorkerError: if ONNX Runtime failed for another reason.
        """
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if not wanted:  # which the library would take for all of them
            return {}
        options = _onnxruntime().RunOptions()
        options.only_execute_path_to_fetches = True
        self._running[threading.get_ident()] = options
        try:
            answers = self._session.run(wanted, dict(inputs), options)
        except _library_errors() as error:
            reason = _reason(error)
            of_these = _KERNEL_REFUSED in str(error) and not options.terminate
            raise refusal("ONNX Runtime", reason, of_these_tensors=of_these) from error
        finally:
            del self._running[threading.get_ident()]
        return dict(zip(wanted, answers, strict=True))

    def interrupt(self, thread: int) -> None:
        """See :class:`mlos.engines.InterruptibleEngine`; the library looks between two nodes of the graph."""
        if (options := self._running.get(thread)) is not None:
            options.terminate = True

    @property
    def version(self) -> str:
        """Version of ONNX Runtime."""
        return self._version


@functools.cache
def _onnxruntime() -> Any:
    # What is served here is nobody's business. Its import already writes an identifier into the temporary and
    # the home folder; disable_telemetry_events() ends only what comes after.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime  # type: ignore[import-untyped]  # it ships no types
    except ImportError as error:
        raise MissingExtraError.of("onnxruntime", "running ONNX models") from error
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _options(threads: int) -> Any:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _FATAL
    # Threads that spin after a run slow whatever runs next on the same cores by some 150 ms.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _session(path: Path, options: Any) -> Any:
    return _onnxruntime().InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])


def _from_kept(form: KeptForm, path: Path, threads: int) -> Any | None:
    """A session of the kept form of ``path``, which is made if it can be; None where there is none."""
    expected: tuple[type[Exception], ...] = (*_library_errors(), CorruptError, OSError)
    try:
        if not form.present and not form.make(lambda folder: _compile(path, folder)):
            return None
        options = _options(threads)
        options.graph_optimization_level = _onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL  # it was done
        with form.verified():
            return _session(form.folder / _GRAPH, options)
    except expected as error:
        form.discard()
        _log.warning("%s is opened without its kept form: %s", path.name, _reason(error))
        return None


def _compile(path: Path, folder: Path) -> None:
    """Write into ``folder`` the graph as optimised for this processor, and the packed weights beside it."""
    options = _options(1)
    options.optimized_model_filepath = str(folder / _GRAPH)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    _session(path, options)


def _library_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # type: ignore[import-untyped]  # likewise

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError)


def _reason(error: Exception) -> str:
    """The library's message as one line, without its prefix and the paths of the machine that built it."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = text.rpartition("Status Message: ")[2]
    text = re.sub(r"^Load model from .*? failed: ?", "", text)  # which file it is, our own message says
    return one_line(re.sub(r"^/\S*:\d+ .*?\) ", "", text))
