"""What every peer serves: the package's ONNX file, as tensors, or as a text to its embedding.

It runs in each peer's own environment, so it needs ONNX Runtime, numpy and tokenizers alone. The session is set
up as MLOS sets up its own. ``MLOS_BENCH`` holds the settings as JSON: ``model`` (the file), ``threads``,
``outputs`` (the names that are asked for), and for texts ``tokenizer``, ``max_length`` and ``normalize``.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import onnxruntime

SETTINGS: dict[str, Any] = json.loads(os.environ["MLOS_BENCH"])
NUMPY = {
    "FP32": np.float32,
    "FP64": np.float64,
    "INT64": np.int64,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "BOOL": np.bool_,
}
V2 = {np.dtype(kind).name: name for name, kind in NUMPY.items()}
NOTHING = memoryview(b"")
HEADER = "inference-header-content-length"


class ModelFile:
    """The file in a session, and its tokenizer where it has one."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = SETTINGS["threads"]
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            SETTINGS["model"], options, providers=["CPUExecutionProvider"]
        )
        self.outputs: list[str] = SETTINGS["outputs"]
        self.inputs: list[str] = [node.name for node in self.session.get_inputs()]
        self.tokenizer = None
        if SETTINGS.get("tokenizer"):
            from tokenizers import Tokenizer

            self.tokenizer = Tokenizer.from_file(SETTINGS["tokenizer"])
            self.tokenizer.no_padding()
            self.tokenizer.enable_truncation(SETTINGS["max_length"])

    def run(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """Arrays by name to arrays by name."""
        return dict(zip(self.outputs, self.session.run(self.outputs, tensors), strict=True))

    def embed(self, texts: list[str]) -> Any:
        """Texts to one vector each: the mean of their tokens' hidden states, normalised where the package says.

        Texts of equal length are computed as one.
        """
        assert self.tokenizer is not None
        encodings = [self.tokenizer.encode(text) for text in texts]
        if len({len(one.ids) for one in encodings}) > 1:
            return np.concatenate([self.embed([text]) for text in texts])
        rows = {
            "input_ids": [one.ids for one in encodings],
            "attention_mask": [one.attention_mask for one in encodings],
            "token_type_ids": [one.type_ids for one in encodings],
        }
        tensors = {name: np.array(rows[name], np.int64) for name in self.inputs}
        vectors = self.session.run(self.outputs, tensors)[0].astype(np.float64).mean(axis=1)
        if SETTINGS["normalize"]:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors.astype(np.float32)


def tensors_of(request: dict[str, Any], raw: memoryview = NOTHING) -> dict[str, Any]:
    """The inputs of a request of the protocol V2; those that stand behind its JSON are in ``raw``."""
    found, at = {}, 0
    for tensor in request["inputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        kind = NUMPY[tensor["datatype"]]
        if size is None:
            array = np.array(tensor["data"], kind)
        else:
            array = np.frombuffer(raw[at : at + size], kind)
            at += size
        found[tensor["name"]] = array.reshape(tensor["shape"])
    return found


def tensors_of_body(body: bytes, header: str | None, loads: Any) -> dict[str, Any]:
    """The same of a whole body, ``header`` being the length of its JSON; ``loads`` reads JSON."""
    length = int(header) if header else len(body)
    return tensors_of(loads(body[:length]), memoryview(body)[length:])


def answer_of(outputs: dict[str, Any], *, lists: bool = True) -> dict[str, Any]:
    """The answer as JSON has it; with ``lists=False`` the arrays stay, for an encoder that knows them."""
    return {
        "model_name": "model",
        "outputs": [
            {
                "name": name,
                "datatype": V2[array.dtype.name],
                "shape": list(array.shape),
                "data": array.ravel().tolist() if lists else np.ascontiguousarray(array).ravel(),
            }
            for name, array in outputs.items()
        ],
    }


def raw_answer_of(outputs: dict[str, Any], dumps: Any) -> tuple[bytes, str]:
    """The answer with its tensors behind the JSON, and how long that is; ``dumps`` writes JSON as bytes."""
    told = [
        {
            "name": name,
            "datatype": V2[array.dtype.name],
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in outputs.items()
    ]
    head = dumps({"model_name": "model", "outputs": told})
    return b"".join((head, *(array.tobytes() for array in outputs.values()))), str(len(head))
