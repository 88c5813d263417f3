"""ONNX: a graph as protocol buffers, its weights inside or in files beside it.

Format: https://github.com/onnx/onnx/blob/main/docs/IR.md and onnx.proto, IR version 14. Read by our own wire
reader; weights are never read, only located and measured. Weights in files beside the graph are the matter of
:mod:`mlos.formats.onnx_external`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mlos.errors import RefusedError
from mlos.formats.onnx_external import ExternalData, unique_pairs
from mlos.formats.onnx_schema import DATA_FIELDS, DOMAINS, SCHEMA, TYPES, ElementType
from mlos.formats.protobuf import Handler, Message, Tally, Wire
from mlos.formats.source import INT64_MAX, Source, elements, quoted, shown
from mlos.formats.summary import Summary
from mlos.model.tensors import DType, TensorSpec

MAX_IR_VERSION = 14
"""The newest this reader knows (onnx 1.23)."""
MAX_RANK = 64
_EXTERNAL = 1


@dataclass(frozen=True)
class _Tensor:
    name: str
    type: str
    elements: int


@dataclass(frozen=True)
class _Value:
    """A graph's input or output. ``type`` is absent where the file gives none."""

    name: str
    type: Any


@dataclass(frozen=True)
class _Graph:
    inputs: tuple[_Value, ...]
    outputs: tuple[_Value, ...]
    initializers: frozenset[str]


def detect(source: Source) -> bool:
    """Whether the file starts as ONNX files do: known fields of a model, an IR version first, then a graph."""
    wire = Wire(source, SCHEMA, {})
    position, version = 0, False
    try:
        for _ in range(1000):
            key, after = wire.varint(position, source.size)
            number, kind = key >> 3, key & 7
            if number not in SCHEMA["Model"] or kind != (0 if number in (1, 5) else 2):
                return False
            if number == 7:
                return version
            version = version or number == 1
            position = wire.step(position, source.size, "Model")[3]
            if position == after:
                return False
    except RefusedError:
        return False
    return False


def verify(path: Path, name: str | None = None) -> Summary:
    """Check an ONNX file and the external data it names; see the module's description.

    Raises:
        CorruptError: if it breaks a rule of the format.
        RefusedError: if it asks for what is not taken: files elsewhere, inputs or outputs that no protocol can
            carry, a newer IR, more than the limits.
    """
    with Source(path, name) as source:
        return _Verifier(source).verify()


class _Verifier:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.nodes = 0
        self.domains: set[str] = set()
        self.functions: set[tuple[str, str]] = set()
        self.initializers = 0
        self.types: dict[str, int] = {}
        self.external = ExternalData(source)

    def verify(self) -> Summary:
        source = self.source
        if source.size == 0:
            raise source.corrupt("it is empty", "an ONNX model", "0 bytes")
        handlers: dict[str, Handler] = {
            "Model": dict,
            "Graph": self._graph,
            "Node": self._node,
            "Function": self._function,
            "Tensor": self._tensor,
            "SparseTensor": self._sparse,
            "Pair": lambda pair: (pair.get("key", ""), pair.get("value", "")),
            "OperatorSet": lambda item: (item.get("domain", ""), item.get("version", 0)),
            "Value": lambda value: _Value(value.get("name", ""), value.get("type")),
            "Type": dict,
            "TensorType": lambda item: ("tensor", item.get("elem_type", 0), item.get("shape")),
            "OtherType": lambda _: True,
            "Shape": lambda shape: tuple(shape.get("dim", ())),
            "Dimension": dict,
        }
        model: Message = Wire(source, SCHEMA, handlers).fold("Model", 0, source.size)
        version = model.get("ir_version", 0)
        graph: _Graph | None = model.get("graph")
        if graph is None or version < 1:
            missing = "no graph" if graph is None else f"IR version {version}"
            raise source.corrupt("it is not an ONNX model", "an IR version and a graph", missing)
        if version > MAX_IR_VERSION:
            raise source.refused(
                "it is of a newer ONNX",
                f"IR version up to {MAX_IR_VERSION}",
                str(version),
                "upgrade MLOS, or export again with an older ONNX",
            )
        opsets = unique_pairs(source, "opset_import", model.get("opset_import", []))
        if version >= 3 and not opsets:
            raise source.corrupt("it names no operator set", "at least one opset_import", "none")
        if not graph.outputs:
            raise source.corrupt("the graph gives no output", "at least one", "none")
        external = self.external.check()
        defined = {domain for domain, _ in self.functions}
        return Summary(
            format="onnx",
            tensors=self.initializers,
            parameters=sum(self.types.values()),
            metadata={
                "ir_version": version,
                "producer": model.get("producer_name", ""),
                "producer_version": model.get("producer_version", ""),
                "opsets": opsets,
                "nodes": self.nodes,
                "functions": len(self.functions),
                "domains": sorted(self.domains),
                "custom_domains": sorted(self.domains - DOMAINS - defined),
                "properties": unique_pairs(source, "metadata_props", model.get("metadata_props", [])),
            },
            inputs=tuple(
                self._spec("input", value) for value in graph.inputs if value.name not in graph.initializers
            ),
            outputs=tuple(self._spec("output", value) for value in graph.outputs),
            external_files=external,
            opset=opsets.get("", opsets.get("ai.onnx")),
            element_types=self.types,
        )

    # What the wire reader calls for each finished message.

    def _node(self, node: Message) -> None:
        self.nodes += 1
        if not node.get("op_type"):
            raise self.source.corrupt(
                "a node has no operator", "an op_type", f"none in node {quoted(node.get('name', ''))}"
            )
        self.domains.add(node.get("domain", ""))

    def _function(self, function: Message) -> None:
        self.functions.add((function.get("domain", ""), function.get("name", "")))

    def _graph(self, graph: Message) -> _Graph:
        inputs, outputs = tuple(graph.get("input", ())), tuple(graph.get("output", ()))
        tensors: list[_Tensor] = [*graph.get("initializer", ()), *graph.get("sparse_initializer", ())]
        for kind, names in (
            ("input", [value.name for value in inputs]),
            ("output", [value.name for value in outputs]),
            ("initializer", [tensor.name for tensor in tensors]),
        ):
            if len(set(names)) != len(names) or "" in names:
                twice = (
                    sorted(name for name in set(names) if names.count(name) > 1) if len(names) < 1000 else []
                )
                raise self.source.corrupt(
                    f"the graph's {kind}s are not named apart",
                    "one name each",
                    f"{quoted(twice[0])} twice" if twice else "an empty name or the same name twice",
                )
        self.initializers += len(tensors)
        for tensor in tensors:
            self.types[tensor.type] = self.types.get(tensor.type, 0) + tensor.elements
        return _Graph(inputs, outputs, frozenset(tensor.name for tensor in tensors))

    def _sparse(self, sparse: Message) -> _Tensor:
        shape = tuple(sparse.get("dims", ()))
        values: _Tensor | None = sparse.get("values")
        name = values.name if values else ""
        if values is None or "indices" not in sparse:
            raise self.source.corrupt(
                f"sparse tensor {quoted(name)} is incomplete", "values and indices", "not both"
            )
        count = self._count(name, shape)
        if values.elements > count:
            raise self.source.corrupt(
                f"sparse tensor {quoted(name)} is overfull", f"at most {count} values", str(values.elements)
            )
        return values

    def _tensor(self, tensor: Message) -> _Tensor:
        name = tensor.get("name", "")
        what = f"tensor {quoted(name)}"
        element = TYPES.get(tensor.get("data_type", 0))
        if element is None:
            raise self.source.corrupt(
                f"{what} has an unknown element type", f"1 to {max(TYPES)}", str(tensor.get("data_type", 0))
            )
        count = self._count(name, tuple(tensor.get("dims", ())))
        if count * max(element.bits, 8) > INT64_MAX:
            raise self.source.corrupt(
                f"{what} overflows", "a size below 2^63 bits", f"{count} of {element.name}"
            )
        if "segment" in tensor:
            raise self.source.refused(
                f"{what} is stored in segments", "whole tensors", "a segment", "export it again"
            )
        held = [field for field in DATA_FIELDS if field in tensor]
        location = tensor.get("data_location", 0)
        if location not in (0, _EXTERNAL):
            raise self.source.corrupt(f"{what} has an unknown data_location", "0 or 1", str(location))
        if location == _EXTERNAL or "external_data" in tensor:
            if held or location != _EXTERNAL or element.name == "STRING":
                raise self.source.corrupt(
                    f"{what} says two things about where its data is",
                    "data inside or outside",
                    f"external_data, data_location {location}, "
                    + (", ".join(held) or f"elements of {element.name}"),
                )
            self.external.add(name, tensor.get("external_data", []), (count * element.bits + 7) // 8)
        elif count or held:
            self._inline(what, tensor, element, count, held)
        return _Tensor(name, element.name, count)

    # The rules.

    def _count(self, name: str, shape: tuple[int, ...]) -> int:
        count = elements(shape) if len(shape) <= MAX_RANK and min(shape, default=0) >= 0 else None
        if count is None:
            raise self.source.corrupt(
                f"tensor {quoted(name)} has an impossible shape",
                f"at most {MAX_RANK} axes of a product below 2^63",
                shown(str(list(shape))),
            )
        return count

    def _inline(self, what: str, tensor: Message, element: ElementType, count: int, held: list[str]) -> None:
        if len(held) != 1 or held[0] not in ("raw_data", element.field):
            raise self.source.corrupt(
                f"{what} does not hold its data in one place",
                f"raw_data or {element.field}",
                ", ".join(held) or "no data",
            )
        tally: Tally = tensor[held[0]]
        if held[0] == "raw_data":
            wanted = (count * element.bits + 7) // 8
            if element.name == "STRING" or tally.packed != wanted:
                raise self.source.corrupt(
                    f"{what} has the wrong size", f"{wanted} bytes of {element.name}", f"{tally.packed} bytes"
                )
            return
        entries = element.entries(count)
        least, most = tally.single, tally.single
        if element.field in ("float_data", "double_data"):
            least = most = tally.single + tally.packed // (4 if element.field == "float_data" else 8)
        elif element.field != "string_data":
            least, most = tally.single + -(-tally.packed // 10), tally.single + tally.packed
        if not least <= entries <= most:
            raise self.source.corrupt(
                f"{what} has the wrong size",
                f"{entries} numbers in {element.field}",
                str(least) if least == most else f"{least} to {most}",
            )

    def _spec(self, role: str, value: _Value) -> TensorSpec:
        what = f"{role} {quoted(value.name)}"
        kinds: Message = value.type or {}
        kind, code, shape = (kinds.get("tensor_type") if len(kinds) == 1 else None) or ("", 0, None)
        element = TYPES.get(code)
        if not kind or element is None or element.v2 is None:
            got = (
                element.name
                if element
                else f"element type {code}"
                if kind
                else "no tensor (a sequence, map, optional or nothing)"
            )
            raise self.source.refused(
                f"{what} is of a type that no request can carry",
                "a tensor of " + ", ".join(get_args(DType)),
                got,
                "export the model with numeric tensors as inputs and outputs",
            )
        if shape is None or len(shape) > MAX_RANK:
            raise self.source.refused(
                f"{what} has no usable shape",
                f"up to {MAX_RANK} axes, free ones named",
                "no shape" if shape is None else f"{len(shape)} axes",
                "run onnx.shape_inference.infer_shapes on it",
            )
        return TensorSpec(
            name=value.name,
            dtype=element.v2,
            shape=tuple(self._axis(what, value.name, index, axis) for index, axis in enumerate(shape)),
        )

    def _axis(self, what: str, name: str, index: int, axis: Message) -> int | str:
        length, label = axis.get("dim_value"), axis.get("dim_param", "")
        # Older exporters write -1 for an axis they do not know.
        if (length is not None and label) or (length is not None and length < -1) or len(label) > 256:
            raise self.source.corrupt(
                f"axis {index} of {what} is wrong", "a length or a name", shown(str(axis))
            )
        if length is not None and length >= 0:
            return int(length)
        return shown(label) if label else f"{name}_axis{index}"
