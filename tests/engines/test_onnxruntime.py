"""The ONNX Runtime engine computes what the file says, within its folder, and fails in one clear line."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlos.engines import engine_for
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import InvalidInputError, NoRoomError, RefusedError, UsageError
from mlos.model import Artifact, TensorSpec

RANDOM = np.random.default_rng(0)
WORDS = RANDOM.normal(size=(10, 4)).astype(np.float32)
PLACES = RANDOM.normal(size=(6, 4)).astype(np.float32)
HEAD = RANDOM.normal(size=(4, 3)).astype(np.float32)


def lookup() -> onnx.ModelProto:
    """Tokens to word plus place vectors (``hidden``), and those to three scores (``logits``)."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["word"]),
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["places", "zero", "length"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    initializers = {"words": WORDS, "places": PLACES, "head": HEAD, "zero": np.array([0])}
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 3]),
        ],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return finished(graph)


def finished(graph: onnx.GraphProto, domains: Sequence[str] = ()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


ARTIFACT = Artifact(
    format="onnx",
    precision="fp32",
    path="model.onnx",
    inputs=(TensorSpec(name="ids", dtype="INT64", shape=("batch", "length")),),
    outputs=(
        TensorSpec(name="hidden", dtype="FP32", shape=("batch", "length", 4)),
        TensorSpec(name="logits", dtype="FP32", shape=("batch", "length", 3)),
    ),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    onnx.save(lookup(), package / "model.onnx")
    return package


@pytest.fixture
def engine(folder: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine.open(folder, ARTIFACT, threads=1)


def ids(*rows: list[int]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    return {"ids": np.array(rows, dtype=np.int64)}


def test_it_is_the_engine_for_onnx() -> None:
    assert engine_for(ARTIFACT) is OnnxRuntimeEngine
    with pytest.raises(RefusedError, match="no installed engine opens pytorch") as caught:
        engine_for(ARTIFACT.model_copy(update={"format": "pytorch"}))
    assert caught.value.expected == "gguf, onnx"


def test_it_computes_what_the_file_says(engine: OnnxRuntimeEngine) -> None:
    given = ids([1, 2, 3], [4, 5, 6])
    answers = engine.run(given)
    hidden = WORDS[given["ids"]] + PLACES[:3]
    assert list(answers) == ["hidden", "logits"]
    np.testing.assert_allclose(answers["hidden"], hidden, rtol=1e-6)
    np.testing.assert_allclose(answers["logits"], hidden @ HEAD, rtol=1e-5, atol=1e-5)


def test_axes_are_free_and_outputs_chosen(engine: OnnxRuntimeEngine) -> None:
    answers = engine.run(ids([7]), ["logits"])
    assert {name: tensor.shape for name, tensor in answers.items()} == {"logits": (1, 1, 3)}
    assert engine.run(ids([7]), []) == {}


def test_its_version_is_that_of_the_library(engine: OnnxRuntimeEngine) -> None:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    assert engine.version == onnxruntime.__version__


def test_wrong_tensors_are_refused_before_the_library_sees_them(engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(
        InvalidInputError, match=r"'ids': expected INT64 \['batch', 'length'\], got int64 \[1\]"
    ):
        engine.run({"ids": np.array([1])})
    with pytest.raises(InvalidInputError, match="'ids' is missing"):
        engine.run({})
    with pytest.raises(InvalidInputError, match="no output 'pooled'"):
        engine.run(ids([1]), ["pooled"])


def test_a_token_beyond_the_vocabulary_is_the_requests_fault(engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(InvalidInputError, match="idx=99 must be within") as caught:
        engine.run(ids([99]))
    assert "\n" not in caught.value.message
    assert engine.run(ids([1]))  # and the next request is answered


def test_a_text_beyond_the_positions_is_the_requests_fault(engine: OnnxRuntimeEngine) -> None:
    with pytest.raises(InvalidInputError, match="cannot take these tensors") as caught:
        engine.run(ids([1] * 9))
    assert "\n" not in caught.value.message
    assert "/onnxruntime" not in caught.value.message


def test_running_out_of_memory_is_not_the_requests_fault(folder: Path) -> None:
    """A graph that asks for 2^50 numbers."""
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
    engine = OnnxRuntimeEngine.open(folder, artifact, threads=1)
    with pytest.raises(NoRoomError, match="more memory than there is"):
        engine.run({"ids": np.array([2**25, 2**25])})


def test_nan_is_answered_as_it_is(folder: Path) -> None:
    model = lookup()
    words = WORDS.copy()
    words[3] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(words, "words"))
    onnx.save(model, folder / "model.onnx")
    answers = OnnxRuntimeEngine.open(folder, ARTIFACT, threads=1).run(ids([3]))
    assert np.isnan(answers["hidden"]).all()


def test_a_path_that_leaves_the_package_is_refused(folder: Path) -> None:
    onnx.save(lookup(), folder.parent / "outside.onnx")
    (folder / "link.onnx").symlink_to(folder.parent / "outside.onnx")
    for path in ("../outside.onnx", str(folder.parent / "outside.onnx"), "link.onnx"):
        with pytest.raises(RefusedError, match="outside its package"):
            OnnxRuntimeEngine.open(folder, ARTIFACT.model_copy(update={"path": path}), threads=1)


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(RefusedError, match=r"no file 'other\.onnx'"):
        OnnxRuntimeEngine.open(folder, ARTIFACT.model_copy(update={"path": "other.onnx"}), threads=1)


@pytest.mark.parametrize("content", [b"", b"junk", b"\x08\x08"])
def test_a_file_that_is_no_model_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(RefusedError, match=r"model\.onnx"):
        OnnxRuntimeEngine.open(folder, ARTIFACT, threads=1)


def test_operators_of_strangers_are_refused(folder: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Run", ["ids"], ["hidden"], domain="stranger")],
        "custom",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length"])],
    )
    onnx.save(finished(graph, ["stranger"]), folder / "model.onnx")
    with pytest.raises(RefusedError, match="ONNX Runtime cannot load") as caught:
        OnnxRuntimeEngine.open(folder, ARTIFACT, threads=1)
    assert "\n" not in caught.value.message


def test_a_file_with_other_tensors_than_declared_is_refused(folder: Path) -> None:
    for changed, verb in (
        ({"inputs": (ARTIFACT.inputs[0].model_copy(update={"name": "tokens"}),)}, "takes"),
        ({"outputs": ARTIFACT.outputs[:1]}, "gives"),
    ):
        with pytest.raises(RefusedError, match=f"{verb} other tensors than its manifest declares"):
            OnnxRuntimeEngine.open(folder, ARTIFACT.model_copy(update=changed), threads=1)


def test_it_needs_a_thread(folder: Path) -> None:
    with pytest.raises(UsageError, match="thread"):
        OnnxRuntimeEngine.open(folder, ARTIFACT, threads=0)


def test_several_threads_may_run_at_once(engine: OnnxRuntimeEngine) -> None:
    wrong: list[int] = []

    def ask(token: int) -> None:
        for _ in range(50):
            answer = engine.run(ids([token]), ["hidden"])["hidden"][0, 0]
            if not np.allclose(answer, WORDS[token] + PLACES[0]):
                wrong.append(token)

    threads = [threading.Thread(target=ask, args=(token,)) for token in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_keeps_to_the_processor_and_its_threads_do_not_spin(folder: Path) -> None:
    session = OnnxRuntimeEngine.open(folder, ARTIFACT, threads=2)._session
    options = session.get_session_options()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"


def test_a_missing_library_is_named_with_its_command(tmp_path: Path) -> None:
    """In a process of its own, where the import of onnxruntime fails."""
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from mlos.engines import engine_for\n"
        "from mlos.errors import MissingExtraError\n"
        "from mlos.model import Artifact\n"
        "artifact = Artifact(format='onnx', precision='fp32', path='m.onnx', inputs=(), outputs=())\n"
        "try:\n"
        f"    engine_for(artifact).open(Path({str(tmp_path)!r}), artifact, 1)\n"
        "except MissingExtraError as error:\n"
        "    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'mlos[onnxruntime]'"
