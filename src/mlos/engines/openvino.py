"""OpenVINO on the CPU: ONNX files compiled for this processor, in fp32 unless another precision is asked for.

Two things it does silently are watched for, so that it refuses what the other engine for these files refuses.
A number beyond a table, such as a token beyond the vocabulary, is answered with zeros: so the numbers that
look up rows of constant tables are watched from inside the graph, by their least and largest. And with a single
thread its synchronous call loses errors (seen with 2026.4): a length that the graph cannot take ended in the
answer to the request before, and later in a crash. So runs are started and waited for, which tells, and shapes
are checked.

It computes all outputs of a compiled graph. One is compiled for each set of outputs that is asked for, since a
task that needs hidden states alone should not pay for the scores of a whole vocabulary.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mlos.engines import signal_stack
from mlos.engines.files import file_of
from mlos.engines.inputs import check_answers, check_declared, check_inputs, check_outputs, check_threads
from mlos.engines.kept import KeptForm
from mlos.engines.refusals import one_line, refusal
from mlos.errors import CorruptError, InvalidInputError, MissingExtraError, RefusedError, UsageError
from mlos.model import Artifact, ModelFormat, Tensors

_DEVICE = "CPU"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"BF16": "bf16", "FP16": "fp16"}
_MOST_SETS = 8
"""Sets of outputs that are compiled; whoever asks for yet another gets all outputs computed."""
_BLOB, _TOLD = "graph.blob", "graph.json"
"""The files of a kept form: the library's own, and what else there is to know of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Table:
    """Rows that a tensor of numbers looks up; the last two outputs' places hold that tensor's extremes."""

    rows: int
    least: int
    largest: int


@dataclass
class _Compiled:
    """A compiled graph: its outputs by name, its tables, and its requests that nobody uses at the moment.

    A request may not be run from two threads at once, so each run has one for itself.
    """

    request: Callable[[], Any]
    from_cache: bool
    places: dict[str, int]
    tables: tuple[_Table, ...]
    weights: Any = None
    """What the graph uses without holding it."""
    idle: list[Any] = field(default_factory=list)


class OpenVinoEngine:
    """An ONNX file compiled by OpenVINO."""

    name: ClassVar[str] = "openvino"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx"})

    def __init__(
        self, path: Path, artifact: Artifact, settings: dict[str, Any], version: str, cache: Path | None
    ) -> None:
        self._path, self._artifact, self._settings, self._version = path, artifact, settings, version
        self._cache = cache
        self._compiled: dict[frozenset[str], _Compiled] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Compile the ONNX file of ``artifact`` from ``folder``, to be computed in fp32.

        Raises:
            MissingExtraError: if OpenVINO is not installed.
            RefusedError: if the file lies outside ``folder``, is not there, cannot be compiled, or takes and
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
        """See :class:`mlos.engines.CompilingEngine`; it raises what :meth:`open` does."""
        openvino = _openvino()
        check_threads(threads)
        if precision not in _HINTS:
            raise UsageError(
                f"OpenVINO does not compute ONNX files in {precision}",
                field="precision",
                expected=", ".join(_HINTS),
                got=precision,
            )
        path = file_of(folder, artifact)
        settings = {
            # Unless it is told, it takes bf16 where the processor has it.
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads * streams,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY",
            # Two models that are pinned to the same cores would wait for each other.
            "ENABLE_CPU_PINNING": False,
        }
        engine = cls(path, artifact, settings, str(openvino.get_version()).partition("-")[0], cache)
        if len(artifact.outputs) == 1:  # else the first run says which are wanted
            engine._compile([spec.name for spec in artifact.outputs])
        else:
            engine._read()
        return engine

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """See :class:`mlos.engines.CompilingEngine`.

        Raises:
            MissingExtraError: if OpenVINO is not installed.
        """
        able = _openvino().Core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        return tuple(precision for capability, precision in _CAPABILITIES.items() if capability in able)

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute the outputs named (all if None).

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes.
            WorkerError: if OpenVINO failed for another reason.
        """
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if not wanted:
            return {}
        graph = self._compile(wanted)
        request = _borrowed(graph)
        try:
            with signal_stack.kept():
                request.start_async(dict(inputs), share_inputs=True)
                request.wait()
            # The memory is the request's, which the next run writes over: its answers are copied.
            values = [tensor.data.copy() for tensor in request.output_tensors]
        except (RuntimeError, ValueError, MemoryError) as error:
            raise refusal("OpenVINO", _reason(error), of_these_tensors=_blames_shapes(error)) from error
        graph.idle.append(request)  # one that failed is not used again
        for table in graph.tables:
            _check_lookup(table, values)
        answers = {name: values[graph.places[name]] for name in wanted}
        check_answers(self._artifact, inputs, answers)
        return answers

    @property
    def version(self) -> str:
        """Version of OpenVINO."""
        return self._version

    def _compile(self, wanted: Sequence[str]) -> _Compiled:
        """The graph for a set of outputs: compiled when it is asked for first."""
        whole = frozenset(spec.name for spec in self._artifact.outputs)
        with self._lock:
            known = frozenset(wanted) in self._compiled or len(self._compiled) < _MOST_SETS
            key = frozenset(wanted) if known else whole
            if key not in self._compiled:
                self._compiled[key] = self._build(key)
            return self._compiled[key]

    def _read(self) -> Any:
        """The file as the library's own graph."""
        try:
            model = _openvino().Core().read_model(str(self._path))
        except (RuntimeError, ValueError) as error:
            raise self._cannot_load(error) from error
        names = ([_called(port) for port in ports] for ports in (model.inputs, model.outputs))
        check_declared(self._artifact, *names)
        return model

    def _build(self, wanted: frozenset[str]) -> _Compiled:
        form = None
        if self._cache is not None:
            settings = (self.name, self._version, self._settings, sorted(wanted))
            form = KeptForm.of(self._path, self._cache, *settings)
            if form.present and (found := self._found(form)) is not None:
                return found
        openvino, model = _openvino(), self._read()
        kept = [port for port in model.outputs if _called(port) in wanted]
        results = [port.get_node().input_value(0) for port in kept]
        places = {_called(port): place for place, port in enumerate(kept)}
        tables = []
        try:
            for rows, numbers in _lookups(openvino.Model(results, model.get_parameters())):
                tables.append(_Table(rows, len(results), len(results) + 1))
                results += _extremes(numbers)
            watched = openvino.Model(results, model.get_parameters())
            with signal_stack.kept():
                graph = openvino.Core().compile_model(watched, _DEVICE, self._settings)
        except (RuntimeError, ValueError) as error:
            raise self._cannot_load(error) from error
        if form is not None:
            form.make(lambda folder: _write(folder, graph, places, tables))
        return _Compiled(graph.create_infer_request, False, places, tuple(tables))

    def _found(self, form: KeptForm) -> _Compiled | None:
        """What was compiled before; None if it is damaged, which takes it away.

        The library's own cache changes modes of files, which a confined process may not.
        """
        try:
            with form.verified():
                told = json.loads((form.folder / _TOLD).read_bytes())
                # Mapped, and used by the library where it is: given bytes or a path, it copies them.
                mapped = np.memmap(form.folder / _BLOB, np.uint8, "c")
                blob = _openvino().Tensor(mapped, shared_memory=True)
                with signal_stack.kept():
                    graph = _openvino().Core().import_model(blob, _DEVICE, self._settings)
                tables = tuple(_Table(*table) for table in told["tables"])
                return _Compiled(graph.create_infer_request, True, told["places"], tables, mapped)
        except (RuntimeError, CorruptError) as error:
            form.discard()
            _log.warning("%s is compiled again: %s", self._path.name, _reason(error))
            return None

    def _cannot_load(self, error: Exception) -> RefusedError:
        return RefusedError(
            f"OpenVINO cannot load {self._artifact.path}: {_reason(error)}", field=self._artifact.path
        )


def _openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtraError.of("openvino", "running ONNX models with OpenVINO") from error


def _write(folder: Path, graph: Any, places: dict[str, int], tables: Sequence[_Table]) -> None:
    (folder / _BLOB).write_bytes(graph.export_model().getvalue())
    told = {"places": places, "tables": [astuple(table) for table in tables]}
    (folder / _TOLD).write_text(json.dumps(told), encoding="utf-8")


def _called(port: Any) -> str:
    """A port's name in the file; one of several that stand for the same tensor is the first in the alphabet."""
    return str(min(port.get_names()))


def _lookups(model: Any) -> Iterator[tuple[int, Any]]:
    """Each lookup of rows of a constant table by numbers that inputs decide: how many rows, and the numbers."""
    seen = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather":
            continue
        table, numbers, axis = (node.input_value(place) for place in range(3))
        if not _is_constant(table) or numbers.get_node().get_type_name() == "Constant":
            continue
        constant = axis.get_node()
        if constant.get_type_name() != "Constant" or not len(table.get_shape()):
            continue
        rows = table.get_shape()[int(constant.get_data().reshape(-1)[0])]
        key = (rows, numbers.get_node().get_friendly_name(), numbers.get_index())
        if key not in seen:
            seen.add(key)
            yield rows, numbers


def _is_constant(port: Any) -> bool:
    """Whether a port gives a constant, perhaps one that is stored in another element type."""
    node = port.get_node()
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Constant")


def _extremes(numbers: Any) -> list[Any]:
    """The least and the largest of a tensor of numbers, as two ports."""
    operators = importlib.import_module("openvino.opset13")
    everything, first = (operators.constant(np.array([number], np.int64)) for number in (-1, 0))
    flat = operators.reshape(operators.convert(numbers, "i64"), everything, special_zero=False)
    return [reduce(flat, first).output(0) for reduce in (operators.reduce_min, operators.reduce_max)]


def _check_lookup(table: _Table, values: Sequence[NDArray[Any]]) -> None:
    """Refuse numbers beyond a table's rows; negative ones count from its end, as in ONNX."""
    least, largest = int(values[table.least]), int(values[table.largest])
    if least > largest:  # of no numbers at all
        return
    beyond = largest if largest >= table.rows else least
    if not -table.rows <= beyond < table.rows:
        raise InvalidInputError(
            f"the model cannot take these tensors: idx={beyond} must be within the inclusive range "
            f"[{-table.rows},{table.rows - 1}]",
            field="inputs",
            expected=f"numbers from {-table.rows} to {table.rows - 1}",
            got=str(beyond),
        )


def _borrowed(graph: _Compiled) -> Any:
    try:
        return graph.idle.pop()
    except IndexError:
        return graph.request()


def _blames_shapes(error: Exception) -> bool:
    """Whether an operator refused the lengths it was given."""
    return bool(re.search(r"shape|dimension|broadcast|rank", str(error), re.IGNORECASE))


def _reason(error: Exception) -> str:
    """The library's message as one line, without places in its source."""
    text = re.sub(r"Exception from \S+?:\d+:|Check '[^']*' failed at \S+?:\d+:?", " ", str(error))
    return one_line(text) or type(error).__name__
