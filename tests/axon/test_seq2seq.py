"""Encoder-decoders: both graphs answer like the framework at any shape, through the cache and in whole."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.small import Small
from tests.tiny_t5 import TinyT5, tiny_t5

from mlos.axon.prove_child import answer
from mlos.engines import EncoderDecoder
from mlos.engines.decoding import Decoding
from mlos.errors import InvalidInputError, ParityError, PayloadTooLargeError, RefusedError
from mlos.formats import verify
from mlos.parity import GoldenRecord, compare_outputs, require, tolerance_named, vacuity

WIDE = tolerance_named("fp32-wide")


@pytest.fixture(scope="module")
def made(small: Small) -> TinyT5:
    return tiny_t5(small)


@pytest.fixture(scope="module")
def engine(made: TinyT5) -> EncoderDecoder:
    return made.opened()


def source_of(batch: int, length: int) -> dict[str, NDArray[np.int64]]:
    chance = np.random.default_rng(batch * 100 + length)
    lengths = chance.integers(1, length + 1, (batch, 1))
    return {
        "input_ids": chance.integers(3, 32000, (batch, length)),
        "attention_mask": (np.arange(length) < lengths).astype(np.int64),
    }


def framework(
    made: TinyT5, source: dict[str, NDArray[np.int64]], decoder: NDArray[np.int64]
) -> NDArray[np.float32]:
    with torch.no_grad():
        logits = made.model(
            **{name: torch.from_numpy(tensor) for name, tensor in source.items()},
            decoder_input_ids=torch.from_numpy(decoder),
        ).logits
    result: NDArray[np.float32] = logits.numpy()
    return result


@pytest.mark.parametrize(("batch", "source", "target"), [(1, 1, 1), (3, 50, 7), (2, 9, 20), (1, 300, 2)])
def test_token_by_token_the_logits_are_the_frameworks(
    made: TinyT5, engine: EncoderDecoder, batch: int, source: int, target: int
) -> None:
    inputs = source_of(batch, source)
    decoder = np.random.default_rng(7).integers(0, 32000, (batch, target))
    got = engine.run({**inputs, "decoder_input_ids": decoder})["logits"]
    np.testing.assert_allclose(got, framework(made, inputs, decoder), atol=1e-3)


@pytest.mark.parametrize("cuts", [(0, 4, 9), (0, 1, 2, 9), (0, 9)])
def test_several_tokens_at_once_are_the_same_as_one_after_another(
    made: TinyT5, engine: EncoderDecoder, cuts: tuple[int, ...]
) -> None:
    inputs = source_of(2, 11)
    decoder = np.random.default_rng(3).integers(0, 32000, (2, 9))
    decoding = engine.begin(inputs)
    pieces = [engine.step(decoding, decoder[:, a:b]) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_allclose(np.concatenate(pieces, 1), framework(made, inputs, decoder), atol=1e-3)


def test_copies_and_selected_rows_go_on_with_their_own_past(made: TinyT5, engine: EncoderDecoder) -> None:
    inputs = source_of(2, 6)
    decoding = engine.begin(inputs, copies=2)
    engine.step(decoding, np.array([[5], [6], [7], [8]]))
    decoding.select(np.array([1, 1, 3, 2]))
    got = engine.step(decoding, np.array([[9], [10], [11], [12]]))
    rows = {name: np.repeat(tensor, 2, axis=0) for name, tensor in inputs.items()}
    wanted = framework(made, rows, np.array([[6, 9], [6, 10], [8, 11], [7, 12]]))
    np.testing.assert_allclose(got[:, -1], wanted[:, -1], atol=1e-3)


def test_the_whole_path_is_proved(made: TinyT5) -> None:
    manifest = made.manifest.model_copy(update={"golden": "golden"})
    measures = answer(made.folder, manifest, WIDE, 1, lambda _: None)
    require(measures)
    assert vacuity(made.golden, WIDE) is None
    golden = GoldenRecord.load(made.folder / "golden")
    assert {case.task for case in golden.cases} == {"text2text-generation"}
    assert any("num_beams" in case.request.parameters for case in golden.cases)
    assert (
        sum(case.outputs["logits"].shape[0] * case.outputs["logits"].shape[1] for case in golden.cases) <= 100
    )


def test_both_graphs_pass_our_own_verifier(made: TinyT5) -> None:
    for part in made.artifact.parts.values():
        assert part.path is not None
        summary = verify(made.folder / part.path)
        assert summary.external_files == (f"{part.path}.data",)
        assert (summary.inputs, summary.outputs) == (part.inputs, part.outputs)


def test_wrong_tensors_are_named(made: TinyT5, engine: EncoderDecoder) -> None:
    with pytest.raises(InvalidInputError, match="decoder_input_ids"):
        engine.run(source_of(1, 3))
    with pytest.raises(InvalidInputError, match="no output 'loss'"):
        engine.run({**source_of(1, 3), "decoder_input_ids": np.zeros((1, 1), np.int64)}, ["loss"])
    with pytest.raises(InvalidInputError, match="holds no token"):
        engine.run({**source_of(1, 3), "decoder_input_ids": np.zeros((1, 0), np.int64)})
    for rows, target in ((1, 513), (9, 512)):
        with pytest.raises(PayloadTooLargeError, match="logits"):
            engine.run({**source_of(rows, 3), "decoder_input_ids": np.zeros((rows, target), np.int64)})
    with pytest.raises(RefusedError, match="part by part"):
        EncoderDecoder.open(Path(), made.artifact, 1)


def change(folder: Path, graph: str, edit: Callable[[onnx.ModelProto], None]) -> None:
    proto = onnx.load(folder / graph)
    edit(proto)
    (folder / f"{graph}.data").unlink()
    onnx.save_model(proto, folder / graph, save_as_external_data=True, location=f"{graph}.data")


def weights(proto: onnx.ModelProto, words: str) -> list[onnx.TensorProto]:
    return [tensor for tensor in proto.graph.initializer if words in tensor.name]


def flip(proto: onnx.ModelProto) -> None:
    """The highest bit of the exponent of the head's first weights."""
    tensor = max(proto.graph.initializer, key=lambda each: len(each.raw_data))
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1).view(np.uint32)[:64] ^= 1 << 30
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def swap(proto: onnx.ModelProto) -> None:
    """The norms of two layers."""
    first, second = (
        weights(proto, "block.0.layer.0.layer_norm")[0],
        weights(proto, "block.1.layer.0.layer_norm")[0],
    )
    one, other = numpy_helper.to_array(first).copy(), numpy_helper.to_array(second).copy()
    first.CopyFrom(numpy_helper.from_array(other, first.name))
    second.CopyFrom(numpy_helper.from_array(one, second.name))


@pytest.mark.parametrize(
    ("graph", "edit"),
    [("encoder.onnx", swap), ("decoder.onnx", swap), ("encoder.onnx", flip), ("decoder.onnx", flip)],
)
def test_a_damaged_graph_fails_the_gate(
    made: TinyT5, tmp_path: Path, graph: str, edit: Callable[[onnx.ModelProto], None]
) -> None:
    shutil.copytree(made.folder, tmp_path / "made")
    change(tmp_path / "made", graph, edit)
    manifest = made.manifest.model_copy(update={"golden": "golden"})
    with pytest.raises(ParityError):
        answer(tmp_path / "made", manifest, WIDE, 1, lambda _: None)


@pytest.mark.parametrize("order", [lambda rows: np.arange(len(rows)), lambda rows: rows[::-1].copy()])
def test_beams_that_go_on_with_another_ones_past_fail_the_gate(
    made: TinyT5, monkeypatch: pytest.MonkeyPatch, order: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    select = Decoding.select
    monkeypatch.setattr(Decoding, "select", lambda decoding, rows: select(decoding, order(rows)))
    with pytest.raises(ParityError, match="wrong result: case 'beams'"):
        answer(made.folder, made.manifest.model_copy(update={"golden": "golden"}), WIDE, 1, lambda _: None)


def test_a_wrong_tokenizer_fails_the_gate(made: TinyT5, tmp_path: Path) -> None:
    shutil.copytree(made.folder, tmp_path / "made")
    path = tmp_path / "made" / "tokenizer.json"
    path.write_text(path.read_text().replace('"</s>","ids":[1]', '"</s>","ids":[2]'))
    assert path.read_bytes() != (made.folder / "tokenizer.json").read_bytes()
    manifest = made.manifest.model_copy(update={"golden": "golden"})
    with pytest.raises(ParityError, match="wrong tokenizer"):
        answer(tmp_path / "made", manifest, WIDE, 1, lambda _: None)


def test_the_record_is_what_the_framework_computes(made: TinyT5) -> None:
    answers = {
        case.name: {
            "logits": framework(
                made,
                {name: case.inputs[name] for name in ("input_ids", "attention_mask")},
                case.inputs["decoder_input_ids"],
            )
        }
        for case in made.golden.cases
    }
    require(compare_outputs(made.golden, answers, WIDE))
