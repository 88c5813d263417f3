"""An inference call of the protocol as what the data plane is asked, and its answer as the protocol's tensors.

A call brings either the model's own tensors, or what a person has: then its inputs are BYTES and have the names
of V1's fields (``text``, ``prompt``, ``image``, ``audio``, ``texts``), and the answer is one BYTES tensor,
``result``, with the task's answer to each element as JSON.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlos.core.dataplane import Inference, Urgency
from mlos.core.tensors import BFLOAT, BYTES, check_form, strings_to_raw, wrong
from mlos.core.worker_protocol import Ask, Tensor, Wanted
from mlos.errors import InvalidInputError, WorkerError
from mlos.model import InferenceRequest, Manifest

RESULT = "result"
"""The output of what was asked with texts, images or sounds."""
FILES = ("image", "audio")
WORDS = ("text", "prompt", "texts", *FILES)
"""Names of inputs that hold what a person has. A ``text``, ``image`` or ``audio`` of several is V1's plural."""
_PLURALS = {"text": "texts", "image": "images", "audio": "audios"}
_OWN_PARAMETERS = ("timeout", "priority", "binary_data_output")
_MOST_INPUTS = 1024
_USUAL_PRIORITY = 2
_MOST_PRIORITY = 2**32

Elements: TypeAlias = NDArray[Any] | memoryview | list[bytes] | list[str]
"""An array of numbers as raw bytes give it, the text of a JSON list, or strings (those of JSON are texts)."""


@dataclass(frozen=True)
class Given:
    """An input as the call brings it."""

    name: str
    datatype: str
    shape: Sequence[int]
    data: Elements


@dataclass(frozen=True)
class Call:
    """What is asked. Outputs that ``wanted`` does not name are raw if ``binary``; None asks for all."""

    inputs: Sequence[Given]
    wanted: Sequence[Wanted] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary: bool = False


def urgency_of(parameters: Mapping[str, Any]) -> Urgency:
    """What a call's ``timeout`` (microseconds; 0 is none) and ``priority`` say.

    A priority of 1 goes before others; 2 is what those have that say nothing, or 0; higher ones come after.

    Raises:
        InvalidInputError: if one of them is no such number.
    """
    timeout, priority = parameters.get("timeout", 0), parameters.get("priority", 0)
    for name, value in (("timeout", timeout), ("priority", priority)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
            raise InvalidInputError(
                f"parameter {name!r}: expected a whole number from 0, got {value!r:.100}",
                field=f"parameters.{name}",
                expected="a whole number from 0",
                got=f"{value!r:.100}",
            )
    return Urgency(
        timeout / 1e6 if timeout else math.inf,
        (min(priority, _MOST_PRIORITY) or _USUAL_PRIORITY) - _USUAL_PRIORITY,
    )


def ask_of(call: Call, manifest: Manifest) -> Ask:
    """A call to the model of ``manifest`` as what its worker is asked.

    Raises:
        InvalidInputError: naming the input, output or parameter that is not what it should be.
    """
    names = [given.name for given in call.inputs]
    if len(names) > _MOST_INPUTS:  # before each is compared with all
        raise InvalidInputError(
            f"a request of {len(names)} inputs",
            field="inputs",
            expected=f"at most {_MOST_INPUTS} inputs",
            got=f"{len(names)} inputs",
        )
    for name in names:
        if names.count(name) > 1:
            raise wrong(name, "once", f"{names.count(name)} times")
    parameters = {name: value for name, value in call.parameters.items() if name not in _OWN_PARAMETERS}
    if any(given.datatype == BYTES for given in call.inputs):
        return _ask_in_words(call, parameters)
    declared = {spec.name: spec.dtype for spec in manifest.artifact.inputs}
    for given in call.inputs:
        dtype = declared.get(given.name, given.datatype)  # a name there is not is found by the task
        if given.datatype != dtype and (given.datatype, dtype) != (BFLOAT, "FP32"):
            raise wrong(given.name, f"the datatype {dtype}", f"{given.datatype[:100]}")
    request = InferenceRequest(
        inputs={},
        outputs=None if call.wanted is None else [wanted.name for wanted in call.wanted],
        parameters=parameters,
    )
    tensors = [Tensor(given.name, given.datatype, list(given.shape), given.data) for given in call.inputs]
    return Ask(request, tensors, list(call.wanted or ()), call.binary)


def answer_of(call: Call, inference: Inference) -> list[Tensor]:
    """The outputs of an answered call."""
    if inference.tensors is not None:
        return inference.tensors
    subject = next(given for given in call.inputs if given.name != "texts" or len(call.inputs) == 1)
    count = len(subject.data)
    try:
        texts = [bytes(each) for each in msgspec.json.decode(inference.result, type=list[msgspec.Raw])]
    except msgspec.ValidationError:
        texts = []  # one answer, not a list of them
    if len(texts) != count or _is_single(subject):
        texts = [bytes(inference.result)]
    shape = list(subject.shape) if len(texts) == count else [len(texts)]
    binary = next((wanted.binary for wanted in call.wanted or ()), call.binary)
    try:
        data = strings_to_raw(texts) if binary else msgspec.json.encode([text.decode() for text in texts])
    except UnicodeDecodeError as error:
        raise WorkerError(f"the worker of {inference.model} answered nonsense: {error}") from error
    return [Tensor(RESULT, BYTES, shape, data)]


def _ask_in_words(call: Call, parameters: dict[str, Any]) -> Ask:
    fields: dict[str, Any] = {}
    for given in call.inputs:
        if given.name not in WORDS or given.datatype != BYTES:
            expected = f"BYTES named {', '.join(WORDS)}, or the model's own tensors alone"
            raise wrong(given.name, expected, given.datatype[:100])
        assert isinstance(given.data, list)  # shells bring the elements of BYTES as such
        elements = [_element(given.name, each) for each in given.data]
        if _is_single(given):
            fields[given.name] = elements[0]
        elif given.name == "prompt":
            raise wrong("prompt", "one element", f"{len(elements)} elements")
        else:
            fields[_PLURALS.get(given.name, given.name)] = elements
    for wanted in call.wanted or ():
        if wanted.name != RESULT or wanted.classes:
            raise InvalidInputError(
                f"what is asked with {', '.join(fields)} has no output {wanted.name[:100]!r}",
                field=f"outputs.{wanted.name[:100]}",
                expected=f"{RESULT}, without classification",
                got=repr(wanted.name[:100]),
            )
    task = parameters.pop("task", None)
    stream = parameters.pop("stream", False)
    if not isinstance(task, str | None) or not isinstance(stream, bool):
        name, value = ("stream", stream) if isinstance(task, str | None) else ("task", task)
        raise InvalidInputError(
            f"parameter {name!r}: got {value!r:.100}", field=f"parameters.{name}", got=f"{value!r:.100}"
        )
    return Ask(InferenceRequest(**fields, task=task, stream=stream, parameters=parameters))


def _is_single(given: Given) -> bool:
    return given.name != "texts" and len(given.data) == 1


def _element(name: str, element: bytes | str) -> bytes | str:
    """An element as V1 has it: a text, or a file's bytes, which are base64 in JSON."""
    try:
        if name in FILES:
            return element if isinstance(element, bytes) else base64.b64decode(element, validate=True)
        return element if isinstance(element, str) else element.decode()
    except UnicodeDecodeError as error:
        raise wrong(name, "texts in UTF-8", "other bytes") from error
    except (binascii.Error, ValueError) as error:
        raise wrong(name, "files in base64", "other characters") from error


def strings_from_json(name: str, shape: Sequence[int], text: bytes | memoryview) -> list[str]:
    """The elements of a tensor of BYTES whose JSON ``text`` is a list, flat or nested.

    Raises:
        InvalidInputError: if it is no list of as many strings as ``shape`` has.
    """
    try:
        nested = np.asarray(msgspec.json.decode(text), dtype=object)
    except (ValueError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise wrong(name, "a list of strings", "a ragged or mixed list") from error
    flat = nested.reshape(-1).tolist()
    count = check_form(name, BYTES, shape)
    if nested.ndim == 0 or len(flat) != count or not all(isinstance(each, str) for each in flat):
        raise wrong(name, f"a list of {count} strings", f"{len(flat)} values")
    return flat
