"""ONNX weights in files beside the graph: inside the folder, behind no link, in range, apart, or refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlos.errors import CorruptError, RefusedError
from mlos.formats import verify

RefusalOf = Callable[[Path], RefusedError]
Place = tuple[str, str | None, str | None]
"""Location, offset and length as a tensor's ``external_data`` gives them."""


def external(name: str, size: int, **pairs: str) -> onnx.TensorProto:
    """A tensor of ``size`` bytes whose data is where ``pairs`` say."""
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[size])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in pairs.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def saved(folder: Path, *tensors: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    identity = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([identity, *nodes], "graph", [value], [output], list(tensors))
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_what_the_library_saves_is_read_right(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.ones((64, n), np.float32), f"w{n}") for n in (1, 8, 64)]
    path = saved(tmp_path, *weights)
    model = onnx.load(path)
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=512)
    summary = verify(path)
    assert (tmp_path / "model.onnx.data").stat().st_size >= 64 * 72 * 4
    assert summary.external_files == ("model.onnx.data",)
    assert (summary.tensors, summary.parameters) == (3, 64 * 73)


def test_folders_below_shared_ranges_gaps_and_empty_tensors_are_sound(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/a.bin").write_bytes(bytes(100))
    (tmp_path / "b.bin").write_bytes(bytes(4))
    path = saved(
        tmp_path,
        external("a", 40, location="weights/a.bin", offset="60", length="40"),
        external("tied", 40, location="weights/a.bin", offset="60", length="40"),
        external("first", 10, location="weights/a.bin", checksum="0"),
        external("empty", 0, location="weights/a.bin", offset="5", length="0"),
        external("b", 4, location="b.bin"),
    )
    assert verify(path).external_files == ("b.bin", "weights/a.bin")


@pytest.mark.parametrize(
    "location",
    [
        "../../../../etc/passwd",
        "/etc/passwd",
        "..",
        ".",
        "",
        "./w.bin",
        "a/../w.bin",
        "a//w.bin",
        "w.bin/",
        "..\\w.bin",
        "C:\\w.bin",
        "w.bin\0",
        "w\n.bin",
        "*/_ORT_MEM_ADDR_/*",
    ],
)
def test_a_location_that_is_no_plain_relative_path_is_refused(
    tmp_path: Path, refusal_of: RefusalOf, location: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    (tmp_path / "*/_ORT_MEM_ADDR_").mkdir(parents=True)
    (tmp_path / "*/_ORT_MEM_ADDR_/*").write_bytes(bytes(8))
    error = refusal_of(saved(tmp_path, external("w", 8, location=location)))
    assert "tensor 'w' has its data outside the model's folder" in error.message


@pytest.mark.parametrize("place", ["attribute", "subgraph", "sparse values"])
def test_no_tensor_hides_its_location(tmp_path: Path, refusal_of: RefusalOf, place: str) -> None:
    passwd = external("w", 8, location="../../../../etc/passwd")
    constant = helper.make_node("Constant", [], ["c"], value=passwd)
    if place == "subgraph":
        body = helper.make_graph([constant], "body", [], [])
        constant = helper.make_node("If", ["x"], ["c"], then_branch=body)
    elif place == "sparse values":
        indices = numpy_helper.from_array(np.arange(8), "i")
        sparse = onnx.SparseTensorProto(values=passwd, indices=indices, dims=[20])
        constant = helper.make_node("Constant", [], ["c"], sparse_value=sparse)
    assert "'../../../../etc/passwd'" in refusal_of(saved(tmp_path, nodes=(constant,))).message


def test_links_and_other_names_of_a_file_are_refused(tmp_path: Path, refusal_of: RefusalOf) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "w.bin").write_bytes(bytes(8))
    model = tmp_path / "model"
    model.mkdir()
    (model / "link.bin").symlink_to(secret / "w.bin")
    (model / "folder").symlink_to(secret)
    (model / "dangling.bin").symlink_to("nowhere")
    os.mkfifo(model / "pipe.bin")
    (model / "dir.bin").mkdir()
    for location in ("link.bin", "folder/w.bin", "dangling.bin", "pipe.bin", "dir.bin"):
        error = refusal_of(saved(model, external("w", 8, location=location)))
        assert f"'{location}'" in error.message
        assert not isinstance(error, CorruptError)
    (model / "hard.bin").hardlink_to(secret / "w.bin")
    assert "hard links" in refusal_of(saved(model, external("w", 8, location="hard.bin"))).message


WRONG: dict[str, tuple[list[onnx.TensorProto], str]] = {
    "no such file": ([external("w", 8, location="missing.bin")], "cannot be found"),
    "a file for a folder": ([external("w", 8, location="w.bin/x")], "on the way"),
    "a name of 300 bytes": ([external("w", 8, location="n" * 300)], "cannot be found"),
    "no location": ([external("w", 8, offset="0")], "no location"),
    "past the end": ([external("w", 8, location="w.bin", offset="57")], "past the end"),
    "offset past the end": ([external("w", 0, location="w.bin", offset="65")], "past the end"),
    "offset near 2^63": ([external("w", 8, location="w.bin", offset=str((1 << 63) - 4))], "past the end"),
    "offset of 30 digits": ([external("w", 8, location="w.bin", offset="1" * 30)], "wrong external offset"),
    "negative offset": ([external("w", 8, location="w.bin", offset="-8")], "wrong external offset"),
    "offset in other digits": ([external("w", 8, location="w.bin", offset="\u0661")], "wrong external offset"),
    "length too long": ([external("w", 8, location="w.bin", length="9")], "wrong size"),
    "length too short": ([external("w", 8, location="w.bin", length="7")], "wrong size"),
    "length as a word": ([external("w", 8, location="w.bin", length="all")], "wrong external length"),
    "unknown key": ([external("w", 8, location="w.bin", basepath="/etc")], "unknown words"),
    "overlap": (
        [external("v", 8, location="w.bin"), external("w", 8, location="w.bin", offset="7")],
        "tensors 'v', 'w' overlap",
    ),
    "one inside another": (
        [external("v", 32, location="w.bin"), external("w", 8, location="w.bin", offset="8")],
        "overlap",
    ),
    "same start, other end": (
        [external("v", 32, location="w.bin"), external("w", 8, location="w.bin")],
        "overlap",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_range_that_is_not_the_tensors_own_is_refused(
    tmp_path: Path, refusal_of: RefusalOf, case: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    tensors, said = WRONG[case]
    assert said in refusal_of(saved(tmp_path, *tensors)).message


def test_data_inside_and_outside_at_once_is_refused(tmp_path: Path, refusal_of: RefusalOf) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(8))
    both = external("w", 8, location="w.bin")
    both.raw_data = bytes(8)
    ignored = external("w", 8, location="../secret")
    ignored.data_location = TensorProto.DEFAULT
    ignored.raw_data = bytes(8)
    twice = external("w", 8, location="w.bin")
    twice.external_data.add(key="location", value="../secret")
    texts = external("w", 8, location="w.bin")
    texts.data_type = TensorProto.STRING
    for wrong, said in ((both, "two things"), (ignored, "two things"), (twice, "twice"), (texts, "two things")):
        assert said in refusal_of(saved(tmp_path, wrong)).message
