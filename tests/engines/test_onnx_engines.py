"""What every engine for ONNX files holds: it computes what the file says, and fails in one clear line."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.engines.onnx_graphs import ARTIFACT, HEAD, PLACES, WORDS, finished, ids, lookup

from mlos.engines import Engine, Streams, interruptible, open_model
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.engines.openvino import OpenVinoEngine
from mlos.errors import InvalidInputError, NoRoomError, RefusedError, UsageError, WorkerError
from mlos.model import Artifact, TensorSpec


@pytest.fixture(params=[OnnxRuntimeEngine, OpenVinoEngine], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Engine]:
    found: type[Engine] = request.param
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    onnx.save(lookup(), package / "model.onnx")
    return package


@pytest.fixture(
    params=[(1, 1), (2, 1), (1, 2), (2, 2)],
    ids=["one thread", "two threads", "two streams", "two threads and streams"],
)
def engine(kind: type[Engine], folder: Path, request: pytest.FixtureRequest) -> Engine:
    threads, streams = request.param
    name = OpenVinoEngine.name if kind is OpenVinoEngine else OnnxRuntimeEngine.name

    def opened(threads: int, streams: int) -> Engine:
        return open_model(folder, ARTIFACT, threads, engine=name, streams=streams)

    beside = opened(1, streams)
    return beside if threads == 1 else opened(2, 1) if streams == 1 else Streams(opened(2, 1), beside)


def test_it_computes_what_the_file_says(engine: Engine) -> None:
    given = ids([1, 2, 3], [4, 5, 6])
    answers = engine.run(given)
    hidden = WORDS[given["ids"]] + PLACES[:3]
    assert list(answers) == ["hidden", "logits"]
    np.testing.assert_allclose(answers["hidden"], hidden, rtol=1e-6)
    np.testing.assert_allclose(answers["logits"], hidden @ HEAD, rtol=1e-5, atol=1e-5)


def test_axes_are_free_and_outputs_chosen(engine: Engine) -> None:
    answers = engine.run(ids([7]), ["logits"])
    assert {name: tensor.shape for name, tensor in answers.items()} == {"logits": (1, 1, 3)}
    assert engine.run(ids([7]), []) == {}


def test_wrong_tensors_are_refused_before_the_library_sees_them(engine: Engine) -> None:
    with pytest.raises(
        InvalidInputError, match=r"'ids': expected INT64 \['batch', 'length'\], got int64 \[1\]"
    ):
        engine.run({"ids": np.array([1])})
    with pytest.raises(InvalidInputError, match="'ids' is missing"):
        engine.run({})
    with pytest.raises(InvalidInputError, match="no output 'pooled'"):
        engine.run(ids([1]), ["pooled"])


def test_a_token_beyond_the_vocabulary_is_the_requests_fault(engine: Engine) -> None:
    with pytest.raises(InvalidInputError, match="idx=99 must be within") as caught:
        engine.run(ids([99]))
    assert "\n" not in caught.value.message
    assert engine.run(ids([1]))  # and the next request is answered


def test_a_text_beyond_the_positions_is_the_requests_fault(engine: Engine) -> None:
    engine.run(ids([1] * 6))  # whose answer must not come again
    with pytest.raises(InvalidInputError, match="cannot take these tensors") as caught:
        engine.run(ids([1] * 9))
    assert "\n" not in caught.value.message
    assert "/onnxruntime" not in caught.value.message


def test_running_out_of_memory_is_not_the_requests_fault(kind: type[Engine], folder: Path) -> None:
    """A graph that asks for 2^35 numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["ids"], ["hidden"]),
        ],
        "huge",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [2])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["a", "b"])],
    )
    onnx.save(finished(graph), folder / "model.onnx")
    artifact = ARTIFACT.model_copy(
        update={
            "inputs": (TensorSpec(name="ids", dtype="INT64", shape=(2,)),),
            "outputs": (TensorSpec(name="hidden", dtype="FP32", shape=("a", "b")),),
        }
    )
    engine = kind.open(folder, artifact, threads=1)
    with pytest.raises(NoRoomError, match="more memory than there is"):
        engine.run({"ids": np.array([2**18, 2**17])})


def test_nan_is_answered_as_it_is(kind: type[Engine], folder: Path) -> None:
    model = lookup()
    words = WORDS.copy()
    words[3] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(words, "words"))
    onnx.save(model, folder / "model.onnx")
    answers = kind.open(folder, ARTIFACT, threads=1).run(ids([3]))
    assert np.isnan(answers["hidden"]).all()


def test_a_path_that_leaves_the_package_is_refused(kind: type[Engine], folder: Path) -> None:
    onnx.save(lookup(), folder.parent / "outside.onnx")
    (folder / "link.onnx").symlink_to(folder.parent / "outside.onnx")
    for path in ("../outside.onnx", str(folder.parent / "outside.onnx"), "link.onnx"):
        with pytest.raises(RefusedError, match="outside its package"):
            kind.open(folder, ARTIFACT.model_copy(update={"path": path}), threads=1)


def test_a_missing_file_is_named(kind: type[Engine], folder: Path) -> None:
    with pytest.raises(RefusedError, match=r"no file 'other\.onnx'"):
        kind.open(folder, ARTIFACT.model_copy(update={"path": "other.onnx"}), threads=1)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x08"])
def test_a_file_that_is_no_model_is_refused(kind: type[Engine], folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(RefusedError, match=r"model\.onnx"):
        kind.open(folder, ARTIFACT, threads=1)


def test_operators_of_strangers_are_refused(kind: type[Engine], folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Run", ["ids"], ["hidden"], domain="stranger")],
        "custom",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length"])],
    )
    onnx.save(finished(graph, ["stranger"]), folder / "model.onnx")
    with pytest.raises(RefusedError, match="cannot load") as caught:
        kind.open(folder, ARTIFACT, threads=1)
    assert "\n" not in caught.value.message


def test_a_file_with_other_tensors_than_declared_is_refused(kind: type[Engine], folder: Path) -> None:
    for changed, verb in (
        ({"inputs": (ARTIFACT.inputs[0].model_copy(update={"name": "tokens"}),)}, "takes"),
        ({"outputs": ARTIFACT.outputs[:1]}, "gives"),
    ):
        with pytest.raises(RefusedError, match=f"{verb} other tensors than its manifest declares"):
            kind.open(folder, ARTIFACT.model_copy(update=changed), threads=1)


def test_it_needs_a_thread(kind: type[Engine], folder: Path) -> None:
    with pytest.raises(UsageError, match="thread"):
        kind.open(folder, ARTIFACT, threads=0)


def test_several_threads_may_run_at_once_and_one_that_is_refused_disturbs_no_other(engine: Engine) -> None:
    def ask(token: int) -> None:
        for number in range(50):
            tokens = [token] * (1 + (number + token) % 3)
            answer = engine.run(ids(tokens), ["hidden"])["hidden"][0]
            np.testing.assert_allclose(answer, WORDS[tokens] + PLACES[: len(tokens)], rtol=1e-6)
            if number % 5 == token:
                with pytest.raises(InvalidInputError):
                    engine.run(ids([len(WORDS)]), ["hidden"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(4)))


def test_a_run_can_be_ended_and_the_next_is_right(tmp_path: Path) -> None:
    steps, width = 300, 1024
    names = ["x", *(f"step{number}" for number in range(1, steps)), "y"]
    nodes = [helper.make_node("MatMul", [one, "same"], [other]) for one, other in itertools.pairwise(names)]
    graph = helper.make_graph(
        nodes,
        "long",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(np.eye(width, dtype=np.float32), "same")],
    )
    onnx.save(finished(graph), tmp_path / "long.onnx")
    x, y = (TensorSpec(name=name, dtype="FP32", shape=("batch", width)) for name in ("x", "y"))
    artifact = Artifact(path="long.onnx", format="onnx", precision="fp32", inputs=(x,), outputs=(y,))
    engine = OnnxRuntimeEngine.open(tmp_path, artifact, 1)
    assert interruptible(engine)
    engine.interrupt(threading.get_ident())  # nothing runs: nothing happens
    for _ in range(2):
        with ThreadPoolExecutor(1) as pool:
            thread = pool.submit(threading.get_ident).result()
            long = pool.submit(
                engine.run, {"x": np.ones((4096, width), np.float32)}
            )  # seconds, if it is not ended
            while not long.done():
                engine.interrupt(threading.get_ident())  # nor does this thread run anything
                engine.interrupt(thread)
                np.testing.assert_array_equal(engine.run({"x": np.ones((1, width), np.float32)})["y"], 1)
        with pytest.raises(WorkerError):
            long.result()
        np.testing.assert_array_equal(engine.run({"x": np.ones((2, width), np.float32)})["y"], 1)
