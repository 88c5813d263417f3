"""The forms in which a request goes to a server and its answer comes back, and whether that answer is right.

The Open Inference Protocol V2 carries tensors as JSON or as bytes behind it, under an id, without which KServe
answers 500. Servers that do not know the protocol get the same JSON. A text goes as ``{"text": ...}``, or as a
BYTES tensor where a server speaks V2 alone. A prompt goes in OpenAI's words (:mod:`benchmarks.writing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.client import http_request
from benchmarks.writing import Continued
from mlos.errors import ParityError
from mlos.model import Tensors, TensorSpec
from mlos.model.tensors import dtype_name
from mlos.parity import Tolerance

Form: TypeAlias = Literal["v2-json", "v2-binary", "text", "v2-text", "mlos-text", "openai"]
_HEADER = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Asked:
    """One request, whatever its form, and what a right answer holds."""

    tensors: Tensors
    outputs: Tensors
    text: str | None = None
    embedding: NDArray[Any] | None = None
    continued: Continued | None = None


def written(form: Form, path: str, asked: Asked) -> bytes:
    """The request as bytes on the wire."""
    headers = {}
    outputs: list[dict[str, Any]]
    if form in ("text", "mlos-text"):
        body = msgspec.json.encode({"text": asked.text})
    elif form == "openai":
        assert asked.continued is not None
        body = asked.continued.body()
    elif form == "v2-text":
        tensor = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [asked.text]}
        body = msgspec.json.encode({"id": "1", "inputs": [tensor]})
    elif form == "v2-json":
        inputs = [
            {**_told(name, array), "data": array.ravel().tolist()} for name, array in asked.tensors.items()
        ]
        outputs = [{"name": name} for name in asked.outputs]
        body = msgspec.json.encode({"id": "1", "inputs": inputs, "outputs": outputs})
    else:
        inputs = [
            {**_told(name, array), "parameters": {"binary_data_size": array.nbytes}}
            for name, array in asked.tensors.items()
        ]
        outputs = [{"name": name, "parameters": {"binary_data": True}} for name in asked.outputs]
        parameters = {"binary_data_output": True}  # some look here alone, some at the outputs alone
        head = msgspec.json.encode({"id": "1", "inputs": inputs, "outputs": outputs, "parameters": parameters})
        headers[_HEADER] = str(len(head))
        body = b"".join((head, *(array.tobytes() for array in asked.tensors.values())))
    kind = "application/octet-stream" if form == "v2-binary" else "application/json"
    return http_request(path, kind, body, headers)


def check(form: Form, asked: Asked, body: bytes, length: str | None, tolerance: Tolerance) -> None:
    """Hold an answer to what is right.

    Raises:
        ParityError: if it is not an answer in this form, lacks something, or differs beyond ``tolerance``.
    """
    try:
        if form == "openai":
            assert asked.continued is not None
            asked.continued.check(body)
            return
        found = _read(form, body, length)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ParityError(f"not an answer in the form {form}: {type(error).__name__}: {error}") from error
    if form in ("v2-json", "v2-binary"):
        for name, right in asked.outputs.items():
            if name not in found:
                raise ParityError(f"output {name!r} was not answered", field=name, got=", ".join(found))
            _same(name, right, found[name], tolerance)
    else:
        assert asked.embedding is not None
        _same("embedding", asked.embedding, next(iter(found.values())).ravel(), tolerance)


def _told(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": dtype_name(array.dtype), "shape": list(array.shape)}


def _read(form: Form, body: bytes, length: str | None) -> dict[str, NDArray[Any]]:
    head = int(length) if length is not None else len(body)
    answer = msgspec.json.decode(body[:head])
    if form == "mlos-text":
        return {"embedding": np.asarray(answer["result"]["embedding"], np.float32)}
    if form == "text":
        return {"embedding": np.asarray(answer["embedding"], np.float32)}
    found, at = {}, head
    for tensor in answer["outputs"]:
        spec = TensorSpec(name=tensor["name"], dtype=tensor["datatype"], shape=tuple(tensor["shape"]))
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = np.asarray(tensor["data"], spec.numpy_dtype)
        else:
            array = np.frombuffer(body[at : at + size], spec.numpy_dtype)
            at += size
        found[spec.name] = array.reshape(tensor["shape"])
    return found


def _same(name: str, right: NDArray[Any], got: NDArray[Any], tolerance: Tolerance) -> None:
    """Elementwise where the tolerance bounds elements, else by the cosine of the whole."""
    if right.shape != got.shape:
        raise ParityError(
            f"output {name!r} has shape {list(got.shape)}, not {list(right.shape)}",
            field=name,
            expected=str(list(right.shape)),
            got=str(list(got.shape)),
        )
    one, other = right.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if not np.isfinite(other).all():
        raise ParityError(f"output {name!r} holds NaN or infinity", field=name)
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / norms if norms else float(bool((one == other).all()))
    error = np.abs(one - other)
    bounded = tolerance.atol is not None and tolerance.rtol is not None
    if cosine < tolerance.cosine or (
        bounded and (error > (tolerance.atol or 0) + (tolerance.rtol or 0) * np.abs(one)).any()
    ):
        raise ParityError(
            f"output {name!r} is wrong: max |error| {error.max():.3g}, cosine {cosine:.7f}, by the row "
            f"{tolerance.name}",
            field=name,
        )
