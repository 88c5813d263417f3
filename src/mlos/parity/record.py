"""The golden record: what a model's own framework answered, kept so that anyone can check it with numpy alone.

A record is a folder of two files. ``record.json`` holds, per case, the request as a person gives it, the task
and the framework's result; ``tensors.npz`` holds the framework's preprocessed inputs and its fp32 outputs,
as ``CASE/inputs/NAME`` and ``CASE/outputs/NAME`` with CASE the position of the case. The same content gives
the same bytes: packages are addressed by their content.

A request that consists of the case's own tensors is not written twice: its ``inputs`` are empty in
``record.json``, and reading fills them in.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from mlos.errors import CorruptError, ParityError
from mlos.model import InferenceRequest, Tensors

RECORD = "record.json"
TENSORS = "tensors.npz"
_SCHEMA_VERSION: Literal[1] = 1


@dataclass(frozen=True)
class Case:
    """One request and everything the framework made of it, in fp32.

    ``inputs`` are the framework's preprocessed tensors, ``outputs`` the model's, ``result`` the task's answer
    in the words of JSON; None where the outputs themselves are the answer.
    """

    name: str
    request: InferenceRequest
    task: str
    inputs: Tensors
    outputs: Tensors
    result: Any


@dataclass(frozen=True)
class GoldenRecord:
    """The cases of one model, and the versions of the framework's parts that answered them."""

    cases: tuple[Case, ...]
    framework: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [case.name for case in self.cases]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ParityError(f"the golden record has two cases named {twice[0]!r}")

    def save(self, folder: Path) -> None:
        """Write both files into ``folder``, which is made if absent.

        Raises:
            ParityError: if the framework's own result holds NaN or infinity, or something JSON has no word for.
        """
        folder.mkdir(parents=True, exist_ok=True)
        cases = [
            {
                "name": case.name,
                "task": case.task,
                "request": _written(case),
                "result": case.result,
            }
            for case in self.cases
        ]
        record = {"schema_version": _SCHEMA_VERSION, "framework": self.framework, "cases": cases}
        try:
            text = json.dumps(record, sort_keys=True, indent=1, allow_nan=False)
        except (ValueError, TypeError) as error:
            raise ParityError(f"the framework's result cannot be recorded: {error}") from error
        (folder / RECORD).write_text(text + "\n", encoding="utf-8")
        arrays = {
            f"{number}/{side}/{name}": tensor
            for number, case in enumerate(self.cases)
            for side, tensors in (("inputs", case.inputs), ("outputs", case.outputs))
            for name, tensor in tensors.items()
        }
        # numpy stores each array under the fixed date of 1980-01-01 and uncompressed, so the bytes depend on
        # the arrays alone; compressed ones would depend on the version of zlib too.
        np.savez(folder / TENSORS, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, folder: Path) -> GoldenRecord:
        """Read the record in ``folder``; objects in place of arrays are never unpickled.

        Raises:
            CorruptError: if a file is missing or not what :meth:`save` writes.
        """
        path = folder / RECORD
        try:
            record = json.loads(path.read_bytes())
            if record["schema_version"] != _SCHEMA_VERSION:
                raise CorruptError(
                    f"{path} has schema {record['schema_version']}; this MLOS reads {_SCHEMA_VERSION}",
                    field="schema_version",
                )
            path = folder / TENSORS
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                tensors = {key: arrays[key] for key in arrays.files}
            cases = tuple(_case(number, entry, tensors) for number, entry in enumerate(record["cases"]))
            framework = {str(key): str(value) for key, value in record["framework"].items()}
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            zipfile.BadZipFile,
            EOFError,
        ) as error:
            raise CorruptError(f"{path} is not part of a golden record: {error}", field=path.name) from error
        return cls(cases, framework)


def requests_of(folder: Path) -> tuple[InferenceRequest, ...]:
    """The requests alone of the record in ``folder``, without the tensors, which may be large.

    Raises:
        CorruptError: if the file is missing or not what :meth:`GoldenRecord.save` writes.
    """
    path = folder / RECORD
    try:
        cases = json.loads(path.read_bytes())["cases"]
        return tuple(msgspec.convert(case["request"], InferenceRequest) for case in cases)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path} is not part of a golden record: {error}", field=path.name) from error


def _case(number: int, entry: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Case:
    def side(name: str) -> dict[str, NDArray[Any]]:
        prefix = f"{number}/{name}/"
        return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}

    inputs, request = side("inputs"), msgspec.convert(entry["request"], InferenceRequest)
    if request.inputs == {}:
        request = replace(request, inputs={name: tensor.tolist() for name, tensor in inputs.items()})
    return Case(
        name=entry["name"],
        request=request,
        task=entry["task"],
        inputs=inputs,
        outputs=side("outputs"),
        result=entry["result"],
    )


def _written(case: Case) -> Any:
    """The request as JSON has it."""
    own = case.request.inputs is not None and case.request.inputs is case.inputs
    request = replace(case.request, inputs={}) if own else case.request
    return msgspec.to_builtins(request, enc_hook=_as_list)


def _as_list(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a request cannot hold a {type(value).__name__}")
