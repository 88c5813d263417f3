"""ONNX: what the onnx library writes is read right; graphs that lie are refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from mlos.errors import CorruptError, RefusedError
from mlos.formats import detect, verify
from mlos.formats.onnx_schema import TYPES
from mlos.model.tensors import TensorSpec

Refusal = Callable[[str, bytes], RefusedError]
Attack = Callable[[st.DataObject, bytes, str], None]
FLOAT = TensorProto.FLOAT


def value(name: str, kind: int = FLOAT, shape: Sequence[int | str | None] | None = (1,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(
    *tensors: onnx.TensorProto,
    inputs: Sequence[onnx.ValueInfoProto] = (),
    outputs: Sequence[onnx.ValueInfoProto] = (),
    nodes: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Identity", ["x"], ["y"])],
        "graph",
        list(inputs) or [value("x")],
        list(outputs) or [value("y")],
        list(tensors),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def a_whole_model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((3, 4), np.float32), "w")
    inner = helper.make_graph(
        [helper.make_node("Identity", ["z"], ["o"])],
        "branch",
        [],
        [value("o", TensorProto.DOUBLE, None)],
        [helper.make_tensor("z", TensorProto.DOUBLE, [2], [1.0, 2.0])],
    )
    model = model_of(
        weight,
        inputs=[
            value("x", FLOAT, ["batch", None, 3]),
            value("mask", TensorProto.BOOL, []),
            value("w", FLOAT, [3, 4]),
        ],
        outputs=[value("y", FLOAT, ["batch", None, 4])],
        nodes=[
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("If", ["mask"], ["q"], then_branch=inner, else_branch=inner),
            helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.arange(3), "c")),
            helper.make_node("Gelu", ["y"], ["g"], domain="com.microsoft", floats=[1.0, 2.0], ints=[1, -2]),
            helper.make_node("Secret", ["y"], ["s"], domain="acme"),
            helper.make_node("Ours", ["y"], ["f"], domain="local"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(
        helper.make_function("local", "Ours", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], opsets)
    )
    model.opset_import.append(helper.make_opsetid("acme", 1))
    model.producer_name = "test"
    model.metadata_props.add(key="author", value="nobody")
    return model


SOUND = a_whole_model().SerializeToString()


def test_a_model_of_the_library_is_read_right(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(SOUND)
    summary = verify(path)
    assert detect(path) == "onnx"
    assert (summary.format, summary.tensors, summary.parameters) == ("onnx", 3, 12 + 2 + 2)
    assert summary.element_types == {"FLOAT": 12, "DOUBLE": 4}
    assert summary.inputs == (
        TensorSpec(name="x", dtype="FP32", shape=("batch", "x_axis1", 3)),
        TensorSpec(name="mask", dtype="BOOL", shape=()),
    )
    assert summary.outputs == (TensorSpec(name="y", dtype="FP32", shape=("batch", "y_axis1", 4)),)
    assert (summary.opset, summary.external_files) == (18, ())
    assert summary.metadata == {
        "ir_version": a_whole_model().ir_version,
        "producer": "test",
        "producer_version": "",
        "opsets": {"": 18, "acme": 1},
        "nodes": 6 + 2 + 1,
        "functions": 1,
        "domains": ["", "acme", "com.microsoft", "local"],
        "custom_domains": ["acme"],
        "properties": {"author": "nobody"},
    }


def test_every_element_type_has_its_size_typed_and_raw(tmp_path: Path) -> None:
    tensors = [TensorProto(name="text", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"b"])]
    for number, kind in TYPES.items():
        if kind.name != "STRING":
            raw = numpy_helper.from_array(
                np.zeros(5, helper.tensor_dtype_to_np_dtype(number)), f"{kind.name} raw"
            )
            tensors += [raw, helper.make_tensor(f"{kind.name} typed", number, [5], [0, 1, 0, 1, 0])]
    path = tmp_path / "model.onnx"
    onnx.save(model_of(*tensors), path)
    assert {number: kind.name for number, kind in TYPES.items()} == {
        number: name for name, number in TensorProto.DataType.items() if number
    }
    assert verify(path).element_types == {kind.name: 10 for kind in TYPES.values()} | {"STRING": 2}


def test_large_weights_are_not_read(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[16, 1 << 20], raw_data=bytes(64 << 20))
    path = tmp_path / "model.onnx"
    onnx.save(model_of(weight), path)
    del weight
    tracemalloc.start()
    try:
        assert verify(path).parameters == 16 << 20
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_an_axis_of_minus_one_is_free(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(inputs=[value("x", FLOAT, [-1, 0, 2])]), path)
    assert verify(path).inputs[0].shape == ("x_axis0", 0, 2)


def tensor(**fields: Any) -> onnx.TensorProto:
    return TensorProto(**{"name": "t", "data_type": FLOAT, "dims": [2], **fields})


BAD_TENSORS: dict[str, tuple[onnx.TensorProto, str]] = {
    "no data": (tensor(), "one place"),
    "two kinds of data": (tensor(raw_data=bytes(8), float_data=[0, 0]), "one place"),
    "the field of another type": (tensor(int32_data=[0, 0]), "one place"),
    "raw data too short": (tensor(raw_data=bytes(7)), "wrong size"),
    "raw data too long": (tensor(raw_data=bytes(9)), "wrong size"),
    "raw texts": (tensor(data_type=TensorProto.STRING, raw_data=b"ab"), "wrong size"),
    "a float too few": (tensor(float_data=[0]), "wrong size"),
    "a number too many": (tensor(data_type=TensorProto.INT64, int64_data=[1, 2, 3] * 9), "wrong size"),
    "negative axis": (tensor(dims=[-2], raw_data=bytes(8)), "impossible shape"),
    "shape above 2^63": (tensor(dims=[1 << 40, 1 << 40], raw_data=bytes(8)), "impossible shape"),
    "shape that wraps to 2": (tensor(dims=[(1 << 62) + 1, 2, 2], raw_data=bytes(8)), "impossible shape"),
    "size above 2^63": (tensor(dims=[1 << 62], raw_data=bytes(8)), "overflows"),
    "a hundred axes": (tensor(dims=[1] * 100, raw_data=bytes(4)), "impossible shape"),
    "unknown element type": (tensor(data_type=99, raw_data=bytes(8)), "element type"),
    "no element type": (tensor(data_type=0, raw_data=bytes(8)), "element type"),
    "segments": (tensor(raw_data=bytes(8), segment=TensorProto.Segment(begin=0, end=1)), "segments"),
}


@pytest.mark.parametrize(
    "place", ["initializer", "attribute", "subgraph", "function", "default", "sparse", "training"]
)
@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_wrong_tensor_is_found_wherever_it_is(refusal: Refusal, place: str, case: str) -> None:
    wrong, said = BAD_TENSORS[case]
    assert said in refusal("model.onnx", holding(wrong, place).SerializeToString()).message


def holding(held: onnx.TensorProto, place: str) -> onnx.ModelProto:
    """A model with a tensor in one of the places where the format allows one."""
    constant = helper.make_node("Constant", [], ["c"], value=held)
    graph = helper.make_graph([constant], "inner", [], [value("c")])
    if place == "initializer":
        return model_of(held)
    if place == "attribute":
        return model_of(nodes=[constant])
    if place == "subgraph":
        loop = helper.make_node("Loop", ["n"], ["y"], body=helper.make_graph([], "body", [], [], [held]))
        return model_of(
            nodes=[helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=graph), loop]
        )
    model = model_of()
    if place in ("function", "default"):
        opsets = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("local", "F", [], ["c"], [constant], opsets))
        if place == "default":
            model.functions[0].ClearField("node")
            model.functions[0].attribute_proto.append(helper.make_attribute("a", held))
    elif place == "sparse":
        indices = numpy_helper.from_array(np.arange(2), "")
        model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=held, indices=indices, dims=[9]))
    else:
        model.training_info.add().initialization.CopyFrom(graph)
    return model


def edited(edit: Callable[[onnx.ModelProto], object]) -> bytes:
    model = a_whole_model()
    edit(model)
    return bytes(model.SerializeToString())


def varint(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def message(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def nested(depth: int) -> bytes:
    """A model whose graph holds a node that holds an attribute that holds a graph, and so on."""
    graph = b""
    for _ in range(depth):
        graph = message(1, message(4, b"If") + message(5, message(6, graph)))
    return b"\x08\x0a" + message(7, graph)


TWICE = numpy_helper.from_array(np.zeros(1, np.float32), "w")
BAD: dict[str, tuple[bytes, str]] = {
    "two graphs": (SOUND + message(7, b""), "stands twice"),
    "no graph": (edited(lambda m: m.ClearField("graph")), "not an ONNX model"),
    "no IR version": (edited(lambda m: m.ClearField("ir_version")), "not an ONNX model"),
    "a newer IR version": (edited(lambda m: setattr(m, "ir_version", 99)), "newer ONNX"),
    "no operator set": (edited(lambda m: m.ClearField("opset_import")), "no operator set"),
    "an operator set twice": (edited(lambda m: m.opset_import.add(domain="", version=1)), "something twice"),
    "no output": (edited(lambda m: m.graph.ClearField("output")), "no output"),
    "an input twice": (edited(lambda m: m.graph.input.append(value("x"))), "not named apart"),
    "an output without name": (edited(lambda m: m.graph.output.append(value(""))), "not named apart"),
    "an initializer twice": (edited(lambda m: m.graph.initializer.append(TWICE)), "not named apart"),
    "a node without operator": (edited(lambda m: m.graph.node.add()), "no operator"),
    "graphs nested forty deep": (nested(40), "nested too deep"),
    "a group": (SOUND + b"\x0b\x0c", "wire type 3"),
    "wire type 7": (SOUND + b"\x0f", "wire type 7"),
    "field number 0": (SOUND + b"\x02\x00", "field number 0"),
    "a field number of 30 bits": (SOUND + varint(1 << 32 | 2) + b"\0", "field number"),
    "a varint of 11 bytes": (SOUND + b"\x08" + b"\x80" * 10 + b"\x01", "more than 10 bytes"),
    "a varint of 70 bits": (SOUND + b"\x28" + b"\xff" * 9 + b"\x7f", "more than 64 bits"),
    "a varint cut off": (SOUND + b"\x28\x80", "cut off"),
    "a length past the end": (SOUND + b"\x32\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "reaches past its end"),
    "a length past its message": (b"\x08\x0a" + message(7, b"\x0a\x7f"), "reaches past its end"),
    "a fixed number cut off": (SOUND + b"\xf9\x06\0", "reaches past its end"),
    "another wire type": (b"\x0a\x00" + SOUND, "wire type 2"),
    "a name that is no text": (SOUND.replace(b"MatMul", b"Mat\xff\xffl"), "not UTF-8"),
    "half a float": (b"\x08\x0a" + message(7, message(1, message(5, message(7, b"123")))), "inside a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_graph_that_breaks_a_rule_is_refused(refusal: Refusal, case: str) -> None:
    data, said = BAD[case]
    assert said in refusal("model.onnx", data).message


STRANGE: dict[str, tuple[onnx.ValueInfoProto, str]] = {
    "texts": (value("strange", TensorProto.STRING), "STRING"),
    "bfloat16": (value("strange", TensorProto.BFLOAT16), "BFLOAT16"),
    "complex": (value("strange", TensorProto.COMPLEX64), "COMPLEX64"),
    "no type": (onnx.ValueInfoProto(name="strange"), "no tensor"),
    "a sequence": (helper.make_tensor_sequence_value_info("strange", FLOAT, [1]), "no tensor"),
    "a map": (
        helper.make_value_info(
            "strange", helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))
        ),
        "no tensor",
    ),
    "no shape": (value("strange", FLOAT, None), "no shape"),
    "a length of -2": (value("strange", FLOAT, [-2]), "a length or a name"),
}


@pytest.mark.parametrize("role", ["input", "output"])
@pytest.mark.parametrize("case", STRANGE)
def test_inputs_and_outputs_that_no_request_can_carry_are_named(refusal: Refusal, role: str, case: str) -> None:
    strange, said = STRANGE[case]
    model = model_of(inputs=[strange]) if role == "input" else model_of(outputs=[strange])
    error = refusal("model.onnx", model.SerializeToString())
    assert f"{role} 'strange'" in error.message
    assert said in error.message


def test_millions_of_tiny_fields_are_refused(refusal: Refusal) -> None:
    many = b"\x08\x0a" + message(7, b"\x52\x00" * 2_000_001)
    assert "too large to verify" in refusal("model.onnx", many).message


def test_a_packed_run_of_axes_is_bounded_too(refusal: Refusal) -> None:
    axes = message(1, bytes([1]) * 2_000_001)
    assert "too large to verify" in refusal("model.onnx", b"\x08\x0a" + message(7, message(5, axes))).message


def test_a_text_of_megabytes_is_refused(refusal: Refusal) -> None:
    data = edited(lambda model: setattr(model.graph, "name", "x" * (2 << 20)))
    assert "too much text" in refusal("model.onnx", data).message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html></html>",
        b"hello\n",
        b'{"ir_version": 8}',
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_a_file_that_only_bears_the_name_is_refused(refusal: Refusal, tmp_path: Path, data: bytes) -> None:
    assert "it is not a model file" in refusal("model.onnx", data).message
    assert detect(tmp_path / "model.onnx") is None


@pytest.mark.parametrize("part", range(16))
def test_a_truncated_file_is_corrupt(refusal: Refusal, part: int) -> None:
    error = refusal("model.onnx", SOUND[: len(SOUND) * part // 16])
    assert isinstance(error, CorruptError) or "an empty file" in error.message


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(draw=st.data())
def test_no_mutation_crashes_it(attack: Attack, draw: st.DataObject) -> None:
    attack(draw, SOUND, "model.onnx")
