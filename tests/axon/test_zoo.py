"""Test data that a publisher put beside an ONNX file: the golden record, and what of it is not believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from tests.axon.conftest import answer, axon, contents
from tests.axon.hub_server import HubServer, Repository
from tests.axon.onnx_files import line
from tests.small import Small

from mlos.axon import zoo_child
from mlos.axon.sources.file import FileSource
from mlos.axon.sources.selection import MAX_TEST_SETS, select
from mlos.errors import CorruptError, MlosError, ParityError, RefusedError
from mlos.model import Artifact, Manifest, Reference, TensorSpec
from mlos.parity import GoldenRecord

WEIGHTS = np.arange(8, dtype=np.float32).reshape(4, 2)
LINE = Artifact(
    format="onnx",
    precision="fp32",
    path="model.onnx",
    inputs=(TensorSpec(name="x", dtype="FP32", shape=("n", 4)),),
    outputs=(TensorSpec(name="y", dtype="FP32", shape=("n", 2)),),
)


def write(path: Path, tensor: NDArray[Any], name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(numpy_helper.from_array(tensor, name).SerializeToString())


def publish(folder: Path, batches: tuple[int, ...] = (1, 3, 1)) -> Path:
    """The line of :mod:`tests.axon.onnx_files` and a set of test data for each batch."""
    folder.mkdir()
    line(folder / "model.onnx")
    random = np.random.default_rng(4)
    for number, rows in enumerate(batches):
        x = random.normal(size=(rows, 4)).astype(np.float32)
        write(folder / f"test_data_set_{number}" / "input_0.pb", x, "x")
        write(folder / f"test_data_set_{number}" / "output_0.pb", x @ WEIGHTS, "y")
    return folder


def read(folder: Path, artifact: Artifact = LINE) -> str | None:
    """What the child says of the test data; the record, if any, is in ``folder / "golden"``."""
    sets = sorted(folder.glob("test_data_set_*"))
    order = {
        "sets": [str(each) for each in sets],
        "artifact": artifact.model_dump(mode="json"),
        "tolerance": "fp32",
        "output": str(folder / "golden"),
    }
    reason: str | None = zoo_child.main(order, lambda event: None)["reason"]
    return reason


def test_the_publishers_answers_become_the_golden_record(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/line"] = Repository(contents(publish(tmp_path / "line")), card={"license": "mit"})
    result = answer("install", "hf/org/line")
    (measure,) = result["parity"]
    assert (measure["output"], measure["tolerance"], measure["passed"]) == ("y", "fp32", True)
    manifest = Manifest.model_validate(answer("info", "line")["manifest"])
    assert manifest.golden == "golden"
    assert {file.path for file in manifest.files} == {"model.onnx", "golden/record.json", "golden/tensors.npz"}
    golden = GoldenRecord.load(Path(result["folder"]) / "golden")
    assert [case.name for case in golden.cases] == [f"test_data_set_{number}" for number in range(3)]
    assert [len(case.inputs["x"]) for case in golden.cases] == [1, 3, 1]
    for case in golden.cases:
        assert case.request.inputs == {"x": case.inputs["x"].tolist()}
    written = json.loads((Path(result["folder"]) / "golden" / "record.json").read_bytes())
    assert written["cases"][0]["request"] == {"inputs": {}}


def damage_an_answer(folder: Path) -> str:
    path = folder / "test_data_set_1" / "output_0.pb"
    values = numpy_helper.to_array(onnx.load_tensor(path)).copy()
    values[2, 1] += 0.5
    write(path, values, "y")
    return "y: max |error| 0.5 against tolerance atol 0.0001, rtol 0.001 (fp32) in case 'test_data_set_1'"


def change_the_shape_of_an_answer(folder: Path) -> str:
    path = folder / "test_data_set_2" / "output_0.pb"
    write(path, numpy_helper.to_array(onnx.load_tensor(path)).repeat(2, 0), "y")
    return "output 'y' in case 'test_data_set_2' has shape [1, 2], the framework's has [2, 2]"


@pytest.mark.parametrize("damage", [damage_an_answer, change_the_shape_of_an_answer])
def test_an_answer_that_the_model_does_not_give_fails_the_install(
    tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    folder = publish(tmp_path / "line")
    words = damage(folder)
    done = axon("install", f"file:{folder}")
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
    assert answer("list") == []


def test_a_set_alone_is_no_reference_and_is_left_behind(tmp_path: Path) -> None:
    folder = publish(tmp_path / "line", (3,))
    done = axon("install", f"file:{folder}/model.onnx")
    assert done.returncode == 0, done.stderr
    assert "no reference: one set of test data alone" in done.stderr
    manifest = answer("info", "model")["manifest"]
    assert manifest["golden"] is None
    assert [file["path"] for file in manifest["files"]] == ["model.onnx"]


def test_answers_that_are_all_alike_are_no_reference(tmp_path: Path) -> None:
    folder = publish(tmp_path / "line")
    for number in range(3):
        write(folder / f"test_data_set_{number}" / "output_0.pb", np.ones((1, 2), np.float32), "y")
    assert "proves nothing: y: spread" in str(read(folder))
    assert not (folder / "golden").exists()


def truncated(folder: Path) -> None:
    path = folder / "test_data_set_1" / "input_0.pb"
    path.write_bytes(path.read_bytes()[:-3])


def without_data(folder: Path) -> None:
    path = folder / "test_data_set_1" / "output_0.pb"
    tensor = onnx.load_tensor(path)
    tensor.ClearField("raw_data")
    path.write_bytes(tensor.SerializeToString())


def empty(folder: Path) -> None:
    (folder / "test_data_set_0" / "output_0.pb").write_bytes(b"")


def far_too_large(folder: Path) -> None:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1 << 40, 4], raw_data=bytes(16))
    (folder / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())


def of_another_shape(folder: Path) -> None:
    write(folder / "test_data_set_0" / "input_0.pb", np.ones((1, 5), np.float32), "x")


def of_another_type(folder: Path) -> None:
    write(folder / "test_data_set_0" / "output_0.pb", np.ones((1, 2), np.float64), "y")


def not_a_number(folder: Path) -> None:
    write(folder / "test_data_set_0" / "output_0.pb", np.full((1, 2), np.nan, np.float32), "y")


def without_input(folder: Path) -> None:
    (folder / "test_data_set_2" / "input_0.pb").unlink()


def without_output(folder: Path) -> None:
    (folder / "test_data_set_2" / "output_0.pb").unlink()


def with_one_too_many(folder: Path) -> None:
    write(folder / "test_data_set_2" / "output_1.pb", np.ones((1, 2), np.float32))


def twice(folder: Path) -> None:
    write(folder / "test_data_set_2" / "output_1.pb", np.ones((1, 2), np.float32), "y")


def of_texts(folder: Path) -> None:
    write(folder / "test_data_set_0" / "input_0.pb", np.array([["a", "b", "c", "d"]], dtype=object), "x")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncated, "test_data_set_1/input_0.pb: it cannot be decoded"),
        (without_data, "test_data_set_1/output_0.pb: its type, shape and data do not agree"),
        (empty, "test_data_set_0/output_0.pb: its type, shape and data do not agree"),
        (far_too_large, "test_data_set_0/input_0.pb: its type, shape and data do not agree"),
        (of_another_shape, "test_data_set_0 does not fit the graph: input tensor 'x'"),
        (of_another_type, "test_data_set_0/output_0.pb: it has other elements than 'y': expected FP32"),
        (not_a_number, "test_data_set_0: the tensor 'y' holds NaN or infinity"),
        (without_input, "test_data_set_2 does not fit the graph: input tensor 'x' is missing"),
        (without_output, "test_data_set_2 has no output"),
        (with_one_too_many, "test_data_set_2/output_1.pb: it is of no output of the graph"),
        (twice, "test_data_set_2/output_1.pb: it is of no output of the graph"),
        (of_texts, "test_data_set_0/input_0.pb: it has other elements than 'x': expected FP32"),
    ],
)
def test_what_is_no_test_data_of_this_graph_is_refused_by_its_file(
    tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = publish(tmp_path / "line")
    damage(folder)
    with pytest.raises(CorruptError) as caught:
        read(folder)
    assert words in caught.value.message
    assert caught.value.expected
    assert caught.value.got
    assert not (folder / "golden").exists()


def test_a_tensor_that_lies_outside_its_file_is_not_fetched(tmp_path: Path) -> None:
    folder = publish(tmp_path / "line")
    path = folder / "test_data_set_0" / "input_0.pb"
    tensor = onnx.load_tensor(path)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../etc/passwd"
    path.write_bytes(tensor.SerializeToString())
    with pytest.raises(RefusedError, match=r"test_data_set_0/input_0.pb: its data lies elsewhere"):
        read(folder)


def test_whatever_the_bytes_are_the_error_is_ours(tmp_path: Path) -> None:
    folder = publish(tmp_path / "line")
    path = folder / "test_data_set_1" / "input_0.pb"
    whole, random = path.read_bytes(), np.random.default_rng(8)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for at in random.integers(0, len(data), 3):
            data[at] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            read(folder)
        except MlosError:
            refused += 1
    assert refused > 30


def test_a_tensor_is_of_the_input_that_it_names_else_of_the_one_at_its_place(tmp_path: Path) -> None:
    two = LINE.model_copy(
        update={
            "inputs": tuple(TensorSpec(name=name, dtype="FP32", shape=("n", 2)) for name in ("a", "b")),
            "outputs": (
                TensorSpec(name="sum", dtype="FP32", shape=("n", 2)),
                TensorSpec(name="difference", dtype="FP32", shape=("n", 2)),
            ),
        }
    )
    random = np.random.default_rng(5)
    for number in range(2):
        a, b = random.normal(size=(2, 1, 2)).astype(np.float32)
        folder = tmp_path / f"test_data_set_{number}"
        names = (("b", b), ("a", a)) if number else (("", a), ("gpu_0/b", b))
        for place, (name, tensor) in enumerate(names):
            write(folder / f"input_{place}.pb", tensor, name)
        write(folder / "output_0.pb", a - b, "difference")
    assert read(tmp_path, two) is None
    for case in GoldenRecord.load(tmp_path / "golden").cases:
        assert list(case.outputs) == case.request.outputs == ["difference"]
        np.testing.assert_array_equal(case.inputs["a"] - case.inputs["b"], case.outputs["difference"])


def test_test_data_beside_the_graph_is_taken_and_of_many_sets_the_first(tmp_path: Path) -> None:
    tests = [f"test_data_set_{number}/input_0.pb" for number in range(12)]
    names = ["model.onnx", "other/test_data_set_0/input_0.pb", "test_data_set_0/notes.pb", *tests]
    selection = select(names, "it")
    assert selection.paths == tuple(sorted(["model.onnx", *tests[:MAX_TEST_SETS]]))
    assert selection.notes == ("took 8 sets of test data; left aside 4",)
    assert select(["model.safetensors", *tests], "it").paths == ("model.safetensors",)
    folder = publish(tmp_path / "line", (1, 1))
    resolution = FileSource().resolve(Reference.parse(f"file:{folder}/model.onnx"))
    assert len(resolution.files) == 5


def test_a_link_among_the_test_data_leads_nowhere(tmp_path: Path) -> None:
    folder = publish(tmp_path / "line")
    path = folder / "test_data_set_0" / "input_0.pb"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(RefusedError, match="leads out of the folder"):
        FileSource().resolve(Reference.parse(f"file:{folder}/model.onnx"))


def test_a_seeded_onnx_file_is_held_to_the_frameworks_answers(small: Small, tmp_path: Path) -> None:
    whole = small.candidate("densenet", tmp_path / "whole")
    (measure,) = whole.prove()
    assert (measure.output, measure.tolerance) == ("logits", "fp32")
    assert measure.argmax_agreement == 1.0
    rows = [len(case.inputs["pixel_values"]) for case in GoldenRecord.load(whole.folder / "golden").cases]
    assert rows == [1, 3, 1]
    damaged = small.candidate("densenet", tmp_path / "damaged")
    model = onnx.load(damaged.folder / "model.onnx")
    weights = next(each for each in model.graph.initializer if len(each.dims) == 4)
    values = numpy_helper.to_array(weights).copy()
    values.flat[0] *= -4
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, damaged.folder / "model.onnx")
    with pytest.raises(ParityError, match="logits: max"):
        damaged.prove()
