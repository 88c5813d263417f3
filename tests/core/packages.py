"""Tiny packages for the runtime's tests, made by hand: graphs of one or two nodes and a word tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, Whitespace

from mlos.model import Artifact, DType, FileEntry, Manifest, ModelFormat, TensorSpec
from mlos.store import InstallRecord, Package, Store

WORDS = ("[PAD]", "[UNK]", "mlos", "makes", "ml", "deployment", "easy")
WIDTH = 4
_ONNX: Mapping[DType, int] = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}


def double(store: Store, name: str = "double", tasks: tuple[str, ...] = ("tensors",)) -> Package:
    """``y = x + x``, for any number of rows of three."""
    x, y = _spec("x", "FP32", ("rows", 3)), _spec("y", "FP32", ("rows", 3))
    return install(store, name, [helper.make_node("Add", ["x", "x"], ["y"])], [x], [y], tasks=tasks)


def plus(store: Store, value: float, commit: str, name: str = "plus") -> Package:
    """``y = x + value``: a version of a model whose answers say which one it is."""
    x, y = _spec("x", "FP32", ("rows",)), _spec("y", "FP32", ("rows",))
    nodes, constants = (
        [helper.make_node("Add", ["x", "value"], ["y"])],
        {"value": np.array([value], np.float32)},
    )
    return install(store, name, nodes, [x], [y], constants, commit=commit)


def curious(store: Store) -> Package:
    """A model for an engine that looks around; its graph is never opened."""
    inputs = [_spec("port", "INT64", (1,)), _spec("canary", "INT64", ("bytes",))]
    node = helper.make_node("Identity", ["canary"], ["found"])
    return install(store, "curious", [node], inputs, [_spec("found", "INT64", ("n",))], format_="pytorch")


def logarithm(store: Store, name: str = "logarithm") -> Package:
    """``y = log x``, which is NaN or infinite for what is not positive."""
    x, y = _spec("x", "FP32", ("rows",)), _spec("y", "FP32", ("rows",))
    return install(store, name, [helper.make_node("Log", ["x"], ["y"])], [x], [y])


def slow(store: Store, name: str = "slow") -> Package:
    """``y = x``, after ``n`` products of two matrices of 512 by 512 (about 2 ms each)."""
    n, x, y = _spec("n", "INT64", ()), _spec("x", "FP32", (1,)), _spec("y", "FP32", (1,))
    carried, result = (helper.make_tensor_value_info(t, TensorProto.FLOAT, [512, 512]) for t in ("m", "p"))
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["m", "weights"], ["p"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            carried,
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), result],
    )
    nodes = [
        helper.make_node("Loop", ["n", "", "weights"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    constants = {"weights": np.full((512, 512), 1 / 512, np.float32), "zero": np.array(0, np.float32)}
    return install(store, name, nodes, [n, x], [y], constants)


def embedder(store: Store, name: str = "embedder", *, split: str | None = None) -> Package:
    """A text's embedding: the mean of rows of a table, by word. ``split`` is where it is split first."""
    inputs = [_spec(name, "INT64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")]
    output = _spec("last_hidden_state", "FP32", ("batch", "sequence", WIDTH))
    table = np.random.default_rng(1).normal(size=(len(WORDS), WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "axes"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["last_hidden_state"]),
    ]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = (
        Whitespace() if split is None else Sequence([Split(Regex(split), "isolated"), Whitespace()])
    )
    return install(
        store,
        name,
        nodes,
        inputs,
        [output],
        {"table": table, "axes": np.array([2], np.int64)},
        tasks=("embeddings",),
        files={"tokenizer.json": tokenizer.to_str().encode(), "config.json": b'{"pad_token_id": 0}'},
        preprocessing={"embeddings": {"pooling": "mean", "normalize": True, "max_length": 64}},
    )


def install(
    store: Store,
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: list[TensorSpec],
    outputs: list[TensorSpec],
    constants: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    tasks: tuple[str, ...] = ("tensors",),
    files: Mapping[str, bytes] | None = None,
    preprocessing: dict[str, Any] | None = None,
    format_: ModelFormat = "onnx",
    commit: str = "c1",
) -> Package:
    """Put a graph into the store."""
    graph = helper.make_graph(
        nodes,
        name,
        [_value(spec) for spec in inputs],
        [_value(spec) for spec in outputs],
        [numpy_helper.from_array(array, key) for key, array in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content = {"model.onnx": model.SerializeToString(), **(files or {})}
    manifest = Manifest(
        name=name,
        reference=f"hf/tests/{name}@{commit}",
        commit=commit,
        weights="local",
        source_format="onnx",
        tasks=tasks,
        artifact=Artifact(
            format=format_, precision="fp32", path="model.onnx", inputs=tuple(inputs), outputs=tuple(outputs)
        ),
        preprocessing=preprocessing or {},
        files=tuple(
            FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role=_role(path))
            for path, data in content.items()
        ),
    )
    with store.staging() as staging:
        for path, data in content.items():
            (staging.folder / path).write_bytes(data)
        return store.commit(staging, manifest, InstallRecord(installed_at=datetime.now(UTC), axon="0"))


def flip_byte(package: Package) -> None:
    """Change one byte of the stored model file."""
    path: Path = package.path("model.onnx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def _role(path: str) -> Any:
    return {"model.onnx": "graph", "config.json": "config"}.get(path, "tokenizer")


def _spec(name: str, dtype: DType, shape: tuple[int | str, ...]) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _ONNX[spec.dtype], list(spec.shape))
