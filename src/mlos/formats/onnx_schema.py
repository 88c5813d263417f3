"""The part of onnx.proto (IR version 14) that verification looks at, and ONNX's element types.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Every message that can hold a tensor or a graph
is here, so none escapes the walk; texts of no interest are payloads, which are hopped over.
"""

from __future__ import annotations

from dataclasses import dataclass

from mlos.formats.protobuf import Field, Kind, Schema
from mlos.model.tensors import DType

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "com.microsoft"})
"""Operator domains that the engines know without a library of custom operators."""


@dataclass(frozen=True)
class ElementType:
    """One ``TensorProto.DataType``: bits of a raw element, the typed field it may stand in, its V2 name."""

    name: str
    bits: int
    field: str
    v2: DType | None = None

    def entries(self, count: int) -> int:
        """Numbers that ``count`` elements take in the typed field; elements of 2 and 4 bits share a byte."""
        if self.name.startswith("COMPLEX"):
            return 2 * count
        return (count * self.bits + 7) // 8 if self.bits in (2, 4) else count


TYPES: dict[int, ElementType] = {
    1: ElementType("FLOAT", 32, "float_data", "FP32"),
    2: ElementType("UINT8", 8, "int32_data", "UINT8"),
    3: ElementType("INT8", 8, "int32_data", "INT8"),
    4: ElementType("UINT16", 16, "int32_data", "UINT16"),
    5: ElementType("INT16", 16, "int32_data", "INT16"),
    6: ElementType("INT32", 32, "int32_data", "INT32"),
    7: ElementType("INT64", 64, "int64_data", "INT64"),
    8: ElementType("STRING", 0, "string_data"),
    9: ElementType("BOOL", 8, "int32_data", "BOOL"),
    10: ElementType("FLOAT16", 16, "int32_data", "FP16"),
    11: ElementType("DOUBLE", 64, "double_data", "FP64"),
    12: ElementType("UINT32", 32, "uint64_data", "UINT32"),
    13: ElementType("UINT64", 64, "uint64_data", "UINT64"),
    14: ElementType("COMPLEX64", 64, "float_data"),
    15: ElementType("COMPLEX128", 128, "double_data"),
    16: ElementType("BFLOAT16", 16, "int32_data"),
    17: ElementType("FLOAT8E4M3FN", 8, "int32_data"),
    18: ElementType("FLOAT8E4M3FNUZ", 8, "int32_data"),
    19: ElementType("FLOAT8E5M2", 8, "int32_data"),
    20: ElementType("FLOAT8E5M2FNUZ", 8, "int32_data"),
    21: ElementType("UINT4", 4, "int32_data"),
    22: ElementType("INT4", 4, "int32_data"),
    23: ElementType("FLOAT4E2M1", 4, "int32_data"),
    24: ElementType("FLOAT8E8M0", 8, "int32_data"),
    25: ElementType("UINT2", 2, "int32_data"),
    26: ElementType("INT2", 2, "int32_data"),
    27: ElementType("FLOAT6E2M3", 6, "int32_data"),
    28: ElementType("FLOAT6E3M2", 6, "int32_data"),
}


def _number(name: str) -> Field:
    return Field(name, Kind.INTEGER)


def _numbers(name: str) -> Field:
    return Field(name, Kind.INTEGER, repeated=True)


def _text(name: str) -> Field:
    return Field(name, Kind.TEXT)


def _one(name: str, message: str) -> Field:
    return Field(name, Kind.MESSAGE, message=message)


def _many(name: str, message: str) -> Field:
    return Field(name, Kind.MESSAGE, repeated=True, message=message)


def _payload(name: str) -> Field:
    return Field(name, Kind.PAYLOAD)


def _unread(name: str, kind: Kind = Kind.PAYLOAD) -> Field:
    return Field(name, kind, repeated=True)


DATA_FIELDS = (
    "raw_data", "float_data", "int32_data", "int64_data", "uint64_data", "double_data", "string_data",
)  # fmt: skip
"""The fields of a tensor that may hold its elements."""

SCHEMA: Schema = {
    "Model": {
        1: _number("ir_version"),
        2: _text("producer_name"),
        3: _text("producer_version"),
        4: _text("domain"),
        5: _number("model_version"),
        6: _payload("doc_string"),
        7: _one("graph", "Graph"),
        8: _many("opset_import", "OperatorSet"),
        14: _many("metadata_props", "Pair"),
        20: _many("training_info", "Training"),
        25: _many("functions", "Function"),
        26: _unread("configuration"),
    },
    "OperatorSet": {1: _text("domain"), 2: _number("version")},
    "Pair": {1: _text("key"), 2: _text("value")},
    "Training": {1: _one("initialization", "Graph"), 2: _one("algorithm", "Graph")},
    "Function": {
        1: _text("name"),
        7: _many("node", "Node"),
        10: _text("domain"),
        11: _many("attribute_proto", "Attribute"),
    },
    "Graph": {
        1: _many("node", "Node"),
        2: _text("name"),
        5: _many("initializer", "Tensor"),
        11: _many("input", "Value"),
        12: _many("output", "Value"),
        15: _many("sparse_initializer", "SparseTensor"),
    },
    "Node": {
        1: _unread("input"),
        2: _unread("output"),
        3: _text("name"),
        4: _text("op_type"),
        5: _many("attribute", "Attribute"),
        7: _text("domain"),
    },
    "Attribute": {
        3: _number("i"),
        4: _payload("s"),
        5: _one("t", "Tensor"),
        6: _one("g", "Graph"),
        7: _unread("floats", Kind.FIXED32),
        8: _unread("ints", Kind.VARINTS),
        9: _unread("strings"),
        10: _many("tensors", "Tensor"),
        11: _many("graphs", "Graph"),
        22: _one("sparse_tensor", "SparseTensor"),
        23: _many("sparse_tensors", "SparseTensor"),
    },
    "Tensor": {
        1: _numbers("dims"),
        2: _number("data_type"),
        3: _payload("segment"),
        4: _unread("float_data", Kind.FIXED32),
        5: _unread("int32_data", Kind.VARINTS),
        6: _unread("string_data"),
        7: _unread("int64_data", Kind.VARINTS),
        8: _text("name"),
        9: _payload("raw_data"),
        10: _unread("double_data", Kind.FIXED64),
        11: _unread("uint64_data", Kind.VARINTS),
        13: _many("external_data", "Pair"),
        14: _number("data_location"),
    },
    "SparseTensor": {1: _one("values", "Tensor"), 2: _one("indices", "Tensor"), 3: _numbers("dims")},
    "Value": {1: _text("name"), 2: _one("type", "Type")},
    "Type": {
        1: _one("tensor_type", "TensorType"),
        4: _one("sequence_type", "OtherType"),
        5: _one("map_type", "OtherType"),
        7: _one("opaque_type", "OtherType"),
        8: _one("sparse_tensor_type", "OtherType"),
        9: _one("optional_type", "OtherType"),
    },
    "TensorType": {1: _number("elem_type"), 2: _one("shape", "Shape")},
    "OtherType": {},
    "Shape": {1: _many("dim", "Dimension")},
    "Dimension": {1: _number("dim_value"), 2: _text("dim_param")},
}
