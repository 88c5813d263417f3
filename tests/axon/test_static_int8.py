"""Static int8: calibrated on data of its own, and what does not bear it left out by measuring."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tests.small import Candidate, Small

from mlos.axon.variants.calibration import examples
from mlos.axon.variants.onnx_forms import save
from mlos.axon.variants.static_int8 import Quantized, calibrated
from mlos.catalogue import catalogue
from mlos.catalogue.retrieval import retrieval
from mlos.errors import ParityError, RefusedError
from mlos.model import ParityMeasure
from mlos.parity import GoldenRecord


def _silence(done: int, total: int) -> None:
    """Nobody looks on."""


def static(candidate: Candidate) -> Quantized:
    """The candidate's graph in static int8."""
    return calibrated(candidate.folder / "model.onnx", candidate.folder, candidate.draft(), _silence)


def proved(candidate: Candidate, model: onnx.ModelProto) -> tuple[ParityMeasure, ...]:
    """The gate, with ``model`` in the place of the candidate's graph."""
    save(model, candidate.folder / "model.onnx")
    return candidate.prove(artifact=candidate.converted.artifact.model_copy(update={"precision": "int8"}))


def test_texts_to_calibrate_with_are_neither_the_gate_s_nor_the_corpus_s() -> None:
    path = catalogue().folder / "calibration" / "texts.toml"
    texts = tomllib.loads(path.read_text(encoding="utf-8"))["texts"]
    cases = [case.request for entry in catalogue().entries.values() for case in entry.golden]
    cases += [case.request for defaults in catalogue().defaults.values() for case in defaults.golden]
    golden = {text for case in cases for text in (case.text, case.prompt, *(case.texts or ()))}
    corpus = {*retrieval().queries, *(passage.text for passage in retrieval().passages)}
    assert len(set(texts)) == len(texts) >= 30
    assert not set(texts) & (golden | corpus)
    words = [len(text.split()) for text in texts]
    assert min(words) == 1
    assert max(words) > 60


def test_a_model_that_takes_named_tensors_alone_is_refused(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("densenet", tmp_path / "candidate")
    with pytest.raises(RefusedError, match="takes neither texts nor pictures nor sounds"):
        examples(candidate.folder, candidate.draft())


@pytest.mark.parametrize("name", ["bert", "resnet", "wav2vec2"])
def test_no_example_is_a_golden_input_or_seen_and_held_back(small: Small, tmp_path: Path, name: str) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    given = examples(candidate.folder, candidate.draft())
    assert len(given.seen) > len(given.held_back) >= 3
    subject = candidate.converted.artifact.inputs[0].name
    golden = GoldenRecord.load(candidate.folder / "golden").cases
    known = {row.tobytes() for case in golden for row in case.inputs[subject]}
    seen, held_back = (
        {row.tobytes() for each in side if len(each[subject]) == 1 for row in each[subject]}
        for side in (given.seen, given.held_back)
    )
    assert not known & (seen | held_back)
    assert not seen & held_back
    if name != "resnet":
        assert len({each[subject].shape[1] for each in given.seen}) >= 3
    if name == "bert":
        assert any((each["attention_mask"] == 0).any() for each in given.seen)


def test_weights_have_a_scale_for_each_channel_and_what_they_meet_has_one(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("minilm", tmp_path / "candidate")
    made = static(candidate)
    assert made.calibration is not None
    assert (made.calibration.operators, made.calibration.left_out) == (12, ())
    graph = made.model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    scales = [shapes[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"]
    assert sum(shape in [(64,), (128,)] for shape in scales) == 12
    assert scales.count(()) == len(scales) - 12 > 0
    (measure,) = proved(candidate, made.model)
    assert measure.cosine > 0.999


def loud(model: onnx.ModelProto) -> str:
    """Make one channel a thousand times louder before an operator and softer within it; returns its name.

    The answers stay what they were, but one scale for all channels leaves nothing of the others.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    node = [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights][1]
    matrix = numpy_helper.to_array(weights[node.input[1]]).copy()
    factors = np.ones(len(matrix), dtype=np.float32)
    factors[3] = 1000
    own, louder, name = "own_weight", "louder", node.name or "louder_product"
    graph.initializer.append(numpy_helper.from_array(matrix / factors[:, None], own))
    graph.initializer.append(numpy_helper.from_array(factors, "factors"))
    place = list(graph.node).index(node)
    graph.node.insert(place, helper.make_node("Mul", [node.input[0], "factors"], [louder], name="loud"))
    node.input[0], node.input[1], node.name = louder, own, name
    return name


def test_an_operator_that_outliers_spoil_stays_in_fp32(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("minilm", tmp_path / "candidate")
    model = onnx.load(candidate.folder / "model.onnx")
    guilty = loud(model)
    save(model, candidate.folder / "model.onnx")
    assert candidate.prove()  # as it was, in fp32
    made = static(candidate)
    assert made.calibration is not None
    assert made.calibration.left_out == (guilty,)
    assert made.calibration.operators == 11
    assert made.calibration.cosine > 0.98
    (measure,) = proved(candidate, made.model)
    assert measure.tolerance == "int8"


def test_a_corrupted_static_scale_fails_the_gate(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("minilm", tmp_path / "candidate")
    model = static(candidate).model
    scales = [tensor for tensor in model.graph.initializer if tuple(tensor.dims) in [(64,), (128,)]]
    scale = next(each for each in scales if each.name.endswith("_scale"))
    scale.CopyFrom(numpy_helper.from_array(-4 * numpy_helper.to_array(scale), scale.name))
    with pytest.raises(ParityError, match="int8"):
        proved(candidate, model)
