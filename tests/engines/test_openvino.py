"""What OpenVINO's engine holds beside what every engine for ONNX files does: its precision, cache, outputs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.engines.onnx_graphs import ARTIFACT, MATRIX, PRODUCT, WIDE, finished, ids, lookup, product_graph

from mlos.engines import compiles, engine_for, engines_for, open_model
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.engines.openvino import OpenVinoEngine
from mlos.errors import InvalidInputError, RefusedError, UsageError
from mlos.model import TensorSpec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(lookup(), tmp_path / "model.onnx")
    return tmp_path


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A product of matrices whose sums are long enough to show in which precision they were made."""
    folder = tmp_path / "product"
    folder.mkdir()
    onnx.save(product_graph(), folder / "model.onnx")
    return folder


def test_it_opens_onnx_files_and_is_not_the_default() -> None:
    assert engine_for(ARTIFACT) is OnnxRuntimeEngine
    assert engine_for(ARTIFACT, "openvino") is OpenVinoEngine
    assert list(engines_for(ARTIFACT))[:2] == ["onnxruntime", "openvino"]
    assert compiles(OpenVinoEngine)
    with pytest.raises(RefusedError, match="no installed engine called abacus") as caught:
        engine_for(ARTIFACT, "abacus")
    assert caught.value.expected == ", ".join(engines_for(ARTIFACT))


def test_it_computes_in_fp32_unless_another_precision_is_asked_for(product: Path) -> None:
    x = np.random.default_rng(1).normal(size=(64, WIDE)).astype(np.float32)
    exact = x.astype(np.float64) @ MATRIX.astype(np.float64)

    def error(precision: str | None) -> float:
        engine = open_model(product, PRODUCT, 1, engine="openvino", precision=precision)
        return float(np.abs(engine.run({"x": x})["y"] - exact).max())

    assert error(None) == error("fp32") < 1e-3
    if "bf16" in OpenVinoEngine.precisions():
        assert 1e-2 < error("bf16") < 2


def test_precisions_that_it_does_not_compute_in_are_refused(product: Path) -> None:
    with pytest.raises(UsageError, match="does not compute ONNX files in int8") as caught:
        open_model(product, PRODUCT, 1, engine="openvino", precision="int8")
    assert caught.value.expected == "fp32, bf16, fp16"
    with pytest.raises(RefusedError, match=r"onnxruntime computes model\.onnx in its own precision, fp32"):
        open_model(product, PRODUCT, 1, precision="bf16")


def test_a_file_of_another_precision_is_computed_as_it_is(product: Path) -> None:
    stored = PRODUCT.model_copy(update={"precision": "fp16"})
    x = np.ones((1, WIDE), np.float32)
    answer = open_model(product, stored, 1, engine="openvino", precision="fp16").run({"x": x})["y"]
    np.testing.assert_allclose(answer, x @ MATRIX, atol=1e-4)
    with pytest.raises(RefusedError, match="own precision, fp16, not in bf16"):
        open_model(product, stored, 1, engine="openvino", precision="bf16")


def test_what_was_compiled_is_kept_and_found_again_where_nothing_can_be_written(
    product: Path, tmp_path: Path
) -> None:
    cache, x = tmp_path / "cache", np.ones((2, WIDE), np.float32)
    cache.mkdir()
    first = open_model(product, PRODUCT, 1, engine="openvino", cache=cache).run({"x": x})["y"]
    kept = sorted(path.name for path in cache.iterdir())
    assert kept
    # In a process that may only read, as a worker: the cache is used, and an empty one does no harm.
    program = f"""
import numpy as np
from pathlib import Path
from mlos.host.sandbox import Policy, confine
from tests.engines.onnx_graphs import PRODUCT, WIDE
from mlos.engines import open_model
folder, cache, empty = Path({str(product)!r}), Path({str(cache)!r}), Path({str(tmp_path / "empty")!r})
confine(Policy(read=(folder, cache, empty)))
for place in (cache, empty):
    engine = open_model(folder, PRODUCT, 1, engine="openvino", cache=place)
    (graph,) = engine._compiled.values()
    x = np.ones((2, WIDE), np.float32)
    print(graph.from_cache, engine.run({{"x": x}})["y"].tolist())
"""
    (tmp_path / "empty").mkdir()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"True {first.tolist()}", f"False {first.tolist()}"]
    assert sorted(path.name for path in cache.iterdir()) == kept


def test_a_graph_is_compiled_for_each_set_of_outputs_when_it_is_asked_for(folder: Path) -> None:
    engine = OpenVinoEngine.open(folder, ARTIFACT, threads=1)
    assert not engine._compiled
    whole, part = engine.run(ids([1, 2])), engine.run(ids([1, 2]), ["logits"])
    engine.run(ids([1, 2, 3]), ["logits"])
    assert set(engine._compiled) == {frozenset({"hidden", "logits"}), frozenset({"logits"})}
    np.testing.assert_allclose(part["logits"], whole["logits"], atol=1e-6)


def test_an_answer_is_not_written_over_by_the_next(folder: Path) -> None:
    engine = OpenVinoEngine.open(folder, ARTIFACT, threads=1)
    first = engine.run(ids([1, 2]))["hidden"]
    before = first.copy()
    engine.run(ids([3, 4]))
    np.testing.assert_array_equal(first, before)


def test_numbers_that_are_computed_and_lie_beyond_a_table_are_refused_too(tmp_path: Path) -> None:
    """Places that a graph counts itself, as some encoders do: the library would answer with zeros."""
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [
        helper.make_node("CumSum", ["ids", "one"], ["places"]),
        helper.make_node("Gather", ["table", "places"], ["hidden"]),
    ]
    graph = helper.make_graph(
        nodes,
        "counting",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", 3])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(1), "one")],
    )
    onnx.save(finished(graph), tmp_path / "model.onnx")
    artifact = ARTIFACT.model_copy(
        update={"outputs": (TensorSpec(name="hidden", dtype="FP32", shape=("batch", "length", 3)),)}
    )
    for kind in (OpenVinoEngine, OnnxRuntimeEngine):
        engine = kind.open(tmp_path, artifact, 1)
        np.testing.assert_array_equal(engine.run(ids([1, 1]))["hidden"], table[[[1, 2]]])
        with pytest.raises(InvalidInputError, match="idx=4 must be within"):
            engine.run(ids([1, 1, 1, 1]))


def test_a_missing_library_is_named_with_its_command(tmp_path: Path) -> None:
    """In a process of its own, where the import of openvino fails."""
    program = (
        "import sys; sys.modules['openvino'] = None\n"
        "from pathlib import Path\n"
        "from mlos.engines.openvino import OpenVinoEngine\n"
        "from mlos.errors import MissingExtraError\n"
        "from mlos.model import Artifact\n"
        "artifact = Artifact(format='onnx', precision='fp32', path='m.onnx', inputs=(), outputs=())\n"
        "try:\n"
        f"    OpenVinoEngine.open(Path({str(tmp_path)!r}), artifact, 1)\n"
        "except MissingExtraError as error:\n"
        "    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'mlos[openvino]'"
