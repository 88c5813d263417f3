"""Conversion: a SafeTensors repository becomes what an engine serves, and its own framework's golden record.

The framework runs in a confined child; this side knows none. What the child reports is checked like any other
data: the model it read may have taken it over.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlos.catalogue import catalogue
from mlos.console import Console, Step
from mlos.errors import CorruptError, MissingExtraError
from mlos.host.cgroup import usable_memory
from mlos.host.child import Emit, run_confined
from mlos.host.sandbox import Policy
from mlos.model import Artifact, FileRole, InferenceRequest
from mlos.model.manifest import normal_path

_NEEDED = ("torch", "transformers", "onnx", "onnxscript", "safetensors")
_TIMEOUT = 3600.0
"""Seconds: BERT-base takes half a minute, three billion parameters some minutes; busy, ten times that."""
_GIB = 1 << 30


class Converted(BaseModel):
    """What a conversion made. ``files`` are relative to the output folder, each with its role.

    ``forms`` are artifacts on the way to ``artifact``, which are proved as well and not packaged.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    forms: tuple[Artifact, ...] = ()
    tasks: tuple[str, ...] = Field(min_length=1)
    architecture: str
    parameters: int = Field(gt=0)
    preprocessing: dict[str, Any]
    tools: dict[str, str]
    files: tuple[tuple[str, FileRole], ...]


def convert(
    source: Path,
    output: Path,
    requests: Sequence[tuple[str, InferenceRequest]],
    tasks: Sequence[str] | None,
    console: Console,
) -> Converted:
    """Convert the repository in the folder ``source`` into the existing folder ``output``.

    ``requests``, each with the name of its case, are what the framework answers for the golden record; if
    there are none, the catalogue's defaults for the model's tasks serve. ``tasks`` restricts and orders what
    the model is packaged for; None takes all that it can do.

    Raises:
        MissingExtraError: if the framework is not installed.
        RefusedError: if the repository is not of a kind that can be converted, or lacks weights.
    """
    require_framework("converting a model")
    size = sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    policy = Policy(
        read=(source,),
        write=(output,),
        memory_bytes=min(12 * size + 8 * _GIB, usable_memory()),
        cpu_seconds=int(_TIMEOUT) * 2,
        file_bytes=4 * size + _GIB,
    )
    request = order(source, output, requests, tasks)
    with _stages(console) as show:
        answer = run_confined("mlos.axon.convert.child", request, policy, timeout=_TIMEOUT, on_event=show)
    try:
        converted = Converted.model_validate(answer)
    except ValidationError as error:
        raise CorruptError(f"the converter's answer is malformed: {error.errors()[0]['msg']}") from error
    written = [path for path, _ in converted.files] + [form.path or "" for form in converted.forms]
    for path in written:
        if not normal_path(path) or not (output / path).is_file():
            raise CorruptError(f"the converter named {path!r} and did not write it", field=path)
    return converted


def require_framework(what_for: str) -> None:
    """See that the framework is installed, ``what_for`` being what needs it.

    Raises:
        MissingExtraError: if it is not.
    """
    for package in _NEEDED:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of("convert", what_for)


def order(
    source: Path,
    output: Path,
    requests: Sequence[tuple[str, InferenceRequest]],
    tasks: Sequence[str] | None,
) -> dict[str, Any]:
    """What the child is told; the arguments are those of :func:`convert`."""
    return {
        "source": source.absolute(),
        "output": output.absolute(),
        "tasks": None if tasks is None else list(tasks),
        "requests": [_case(name, given) for name, given in requests],
        "defaults": default_requests(),
    }


def default_requests() -> dict[str, list[dict[str, Any]]]:
    """By task, the requests that serve a model outside the catalogue."""
    return {
        task: [_case(f"{task}-{case.name}", case.request) for case in defaults.golden]
        for task, defaults in catalogue().defaults.items()
    }


def _case(name: str, request: InferenceRequest) -> dict[str, Any]:
    return {"name": name, "request": msgspec.to_builtins(request)}


@contextlib.contextmanager
def _stages(console: Console) -> Iterator[Emit]:
    """What shows the child's events: each stage as a step of its own, which ends where the next begins."""
    words = {"load": "load", "golden": "ask the framework", "write": "convert", "quantize": "quantize"}
    running = contextlib.ExitStack()
    step: Step | None = None

    def show(event: dict[str, Any]) -> None:
        nonlocal step
        if "warning" in event:
            console.warn(str(event["warning"]))
        if event.get("stage") in words:
            running.close()
            step = running.enter_context(
                console.step(words[event["stage"]], total=event.get("total"), unit=event.get("unit", ""))
            )
        if step is not None and "done" in event:
            step.advance(event["done"])

    with running:
        yield show
