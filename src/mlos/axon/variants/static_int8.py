"""An ONNX graph in static int8: the scales of all that passes through are fixed beforehand, from examples.

Weights have a scale for each output channel, what they meet one scale for the whole tensor, between the least
and the largest value that the examples showed. Some operators do not bear that: a few values far from all
others widen the scale for the rest. Which ones, is measured. One operator after the other is quantized alone,
and how far the answers to some of the examples held back turn from the original's is its movement. Then the
whole graph is tried, and again without one, two, four and so on of those that moved the answers most, until all
examples held back are answered within the row of int8. At least half of the operators take eight bits. The
golden record has no part in that: the gate judges what came out, once.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from mlos.axon.variants.calibration import examples
from mlos.errors import RefusedError
from mlos.model import Calibration, InferenceRequest, Manifest, ParityMeasure, Tensors
from mlos.parity import Case, GoldenRecord, Tolerance, compare_outputs, tolerance_named

_OPERATORS = ("Conv", "MatMul", "Gemm")
_PRODUCTS = ("MatMul", "Gemm")
"""Operators whose results stay in fp32; a convolution's are rounded, since its kernel in int8 answers so."""
_LEAST_OPSET = 13
"""The first whose DequantizeLinear has a scale for each channel."""
_MOST_BYTES = (1 << 31) - 1
"""What one ONNX message holds; the library takes no more."""
_METHOD = "least and largest value"
_MOVEMENT = 4
"""One in so many of the examples held back is enough to see how far an operator moves the answers."""


@dataclass(frozen=True)
class Quantized:
    """A graph in static int8, and how it came about; no calibration where nothing in it can be quantized."""

    model: onnx.ModelProto
    calibration: Calibration | None


def calibrated(
    source: Path, package: Path, manifest: Manifest, progress: Callable[[int, int], None]
) -> Quantized:
    """The graph ``source`` in static int8.

    ``package`` is the folder with what the model's tasks read; ``progress`` is told how many operators have
    been measured, of how many.

    Raises:
        RefusedError: if the libraries cannot calibrate it.
    """
    size = sum(path.stat().st_size for path in source.parent.glob(f"{source.name}*"))
    if size > _MOST_BYTES:
        raise RefusedError(
            f"{manifest.name} is too large to be calibrated by ONNX Runtime",
            field="static",
            expected=f"at most {_MOST_BYTES} bytes",
            got=f"{size} bytes",
        )
    try:
        return _calibrated(source, package, manifest, progress)
    except (ValueError, RuntimeError, TypeError) as error:  # what the quantizer raises where it gives up
        words = " ".join(str(error).split())[:300]
        raise RefusedError(f"ONNX Runtime cannot calibrate {manifest.name}: {words}") from error


def _calibrated(
    source: Path, package: Path, manifest: Manifest, progress: Callable[[int, int], None]
) -> Quantized:
    given, row = examples(package, manifest), tolerance_named("int8")
    with tempfile.TemporaryDirectory() as folder:
        plain = _plain(source, Path(folder))
        model = onnx.load(plain)
        operators = _operators(model)
        if not operators:
            return Quantized(model, None)
        ranges = _ranges(plain, given.seen, Path(folder))
    work = _Work(model, ranges)
    record = _answered(model, given.held_back)

    some = GoldenRecord(record.cases[::_MOVEMENT])

    def held(which: Sequence[str]) -> tuple[onnx.ModelProto, tuple[ParityMeasure, ...]]:
        candidate = work.quantized(which)
        return candidate, _measures(candidate, record, row)

    def alone(which: str) -> float:
        return _cosine(_measures(work.quantized([which]), some, row))

    tried, measures = held(operators)
    left_out: tuple[str, ...] = ()
    if not _passed(measures):
        order = _by_movement(operators, alone, progress)
        for count in _counts(len(operators)):
            left_out = order[:count]
            tried, measures = held([each for each in operators if each not in left_out])
            if _passed(measures):
                break
    agreements = [each.argmax_agreement for each in measures if each.argmax_agreement is not None]
    return Quantized(
        tried,
        Calibration(
            method=_METHOD,
            examples=len(given.seen),
            held_back=len(given.held_back),
            operators=len(operators) - len(left_out),
            left_out=left_out,
            # To six places: the last bits of sums differ between processors, and the manifest is hashed.
            cosine=round(_cosine(measures), 6),
            argmax_agreement=round(min(agreements), 6) if agreements else None,
        ),
    )


def _by_movement(
    operators: Sequence[str], cosine: Callable[[str], float], progress: Callable[[int, int], None]
) -> tuple[str, ...]:
    """The operators in the order of how far each alone, quantized, moves the answers; the farthest first."""
    kept: dict[str, float] = {}
    for number, each in enumerate(operators):
        progress(number, len(operators))
        kept[each] = cosine(each)
    return tuple(sorted(operators, key=lambda each: kept[each]))  # of equals the earlier in the graph


def _counts(operators: int) -> Iterator[int]:
    """How many are left out, try by try: 1, 2, 4 and so on, at most half of them."""
    count = 1
    while 2 * count <= operators:
        yield count
        count *= 2


def _plain(source: Path, folder: Path) -> Path:
    """The graph as one file, its batch normalisations folded into convolutions, its nodes named."""
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]  # it ships no types
        quant_pre_process,
    )

    # As one file: the library would link to weights beside it, and refuse to read links.
    whole, plain = folder / "whole.onnx", folder / "plain.onnx"
    model = onnx.load(source)
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    if opset < _LEAST_OPSET:
        raise RefusedError(
            f"{source.name} is of opset {opset}, which has no scale for each channel",
            field="static",
            expected=f"opset {_LEAST_OPSET} or newer",
            got=f"opset {opset}",
        )
    onnx.save_model(model, whole)
    quant_pre_process(str(whole), str(plain), skip_symbolic_shape=True)
    return plain


def _operators(model: onnx.ModelProto) -> list[str]:
    """Names of what multiplies weights; products of two things that pass through, as in attention, do not."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in _OPERATORS and node.input[1] in weights]


def _ranges(plain: Path, seen: Sequence[Tensors], folder: Path) -> Any:
    from onnxruntime.quantization import (  # type: ignore[import-untyped]  # it ships no types
        CalibrationMethod,
        create_calibrator,
    )

    calibrator = create_calibrator(
        plain,
        list(_OPERATORS),
        augmented_model_path=str(folder / "watched.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )
    calibrator.collect_data(_Reader(iter(seen)))
    return calibrator.compute_data()


class _Reader:
    """Examples one by one, as the calibrator asks for them."""

    def __init__(self, given: Iterator[Tensors]) -> None:
        self._given = given

    def get_next(self) -> Tensors | None:
        return next(self._given, None)


@dataclass(frozen=True)
class _Work:
    """A graph and the ranges of what passes through it, to be quantized in part as often as wanted."""

    model: onnx.ModelProto
    ranges: Any

    def quantized(self, operators: Sequence[str]) -> onnx.ModelProto:
        """The graph with these operators in eight bits."""
        from onnxruntime.quantization import QDQQuantizer, QuantType

        work = QDQQuantizer(
            copy.deepcopy(self.model),  # it is written to
            per_channel=True,
            # Seven bits: where the processor has no dot product of bytes, two products of eight saturate.
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=self.ranges,
            nodes_to_quantize=list(operators),
            nodes_to_exclude=[],
            op_types_to_quantize=list(_OPERATORS),
            extra_options={"OpTypesToExcludeOutputQuantization": list(_PRODUCTS)},
        )
        work.quantize_model()
        model: onnx.ModelProto = work.model.model
        return model


def _answered(model: onnx.ModelProto, held_back: Sequence[Tensors]) -> GoldenRecord:
    """What the original graph answers to the examples held back, as a record to hold others to."""
    return GoldenRecord(
        tuple(
            Case(str(number), InferenceRequest(), "", inputs, outputs, None)
            for number, (inputs, outputs) in enumerate(zip(held_back, _answers(model, held_back), strict=True))
        )
    )


def _answers(model: onnx.ModelProto, inputs: Sequence[Tensors]) -> list[Tensors]:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(each)), strict=True)) for each in inputs]


def _measures(model: onnx.ModelProto, record: GoldenRecord, row: Tolerance) -> tuple[ParityMeasure, ...]:
    answers = _answers(model, [case.inputs for case in record.cases])
    return compare_outputs(
        record, {case.name: each for case, each in zip(record.cases, answers, strict=True)}, row
    )


def _cosine(measures: Sequence[ParityMeasure]) -> float:
    """That of the worst answer."""
    return min(measure.cosine for measure in measures)


def _passed(measures: Sequence[ParityMeasure]) -> bool:
    return all(measure.passed for measure in measures)
