"""One request to a served model, and its answer, checked before anyone believes it.

Whatever goes wrong on the way (the connection, the status, the shape of the answer) is an error of ours with
one message: a server that answers nonsense has failed, and must not bring the validation down with it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import httpx2
import msgspec

from mlos.errors import MlosError, WorkerError

_SERVER_TIMING = re.compile(r"([A-Za-z0-9_-]+)\s*;(?:[^,]*;)?\s*dur=([0-9.]+)")
_JSON = {"Content-Type": "application/json"}
_SHOWN = 500
_T = TypeVar("_T")


class Answer(msgspec.Struct):
    """The V1 response. ``timings_ms`` are the stages the worker measured."""

    digest: str
    task: str
    result: Any
    engine: str
    precision: str
    mode: str
    timings_ms: dict[str, float]


class Asked(msgspec.Struct):
    """An answer, the client's end-to-end time in ms, and all stages that the server reported, in ms.

    ``first_ms`` is when the first part of a streamed answer came, and ``streamed`` the text of its parts.
    """

    answer: Answer
    taken_ms: float
    stages_ms: dict[str, float]
    first_ms: float | None = None
    streamed: str | None = None


class _Part(msgspec.Struct):
    text: str


class _Failure(msgspec.Struct):
    error: dict[str, Any]


def ask(client: httpx2.Client, url: str, body: dict[str, Any]) -> Asked:
    """Post ``body`` and take the answer; the clock stops when its last byte is here, before it is read.

    Raises:
        MlosError: if there is no answer, or it is an error, or not a V1 response.
    """
    content = msgspec.json.encode(body)
    began = time.perf_counter()
    try:
        response = client.post(url, content=content, headers=_JSON)
    except httpx2.HTTPError as error:
        raise WorkerError(f"no answer: {type(error).__name__}: {error}") from error
    taken_ms = (time.perf_counter() - began) * 1e3
    if response.status_code != httpx2.codes.OK:
        raise _refusal(response)
    answer = _decoded(response.content, Answer)
    # The header adds what the worker cannot know: the front's own stages, such as writing the answer as JSON.
    reported = _SERVER_TIMING.findall(response.headers.get("Server-Timing", ""))
    front = {name.replace("-", "_"): float(ms) for name, ms in reported if name != "total"}
    return Asked(answer, taken_ms, {**front, **answer.timings_ms})


def ask_streamed(client: httpx2.Client, url: str, body: dict[str, Any]) -> Asked:
    """Post ``body`` and take the answer as it is made; parts are timed when they arrive here.

    The end-to-end time is that of the whole answer, which follows the last part.

    Raises: MlosError: if there is no answer, or it is an error, or no stream of V1 events with an answer at its
    end.
    """
    content = msgspec.json.encode(body | {"stream": True})
    began = time.perf_counter()
    first_ms: float | None = None
    parts: list[str] = []
    try:
        with client.stream("POST", url, content=content, headers=_JSON) as response:
            if response.status_code != httpx2.codes.OK:
                response.read()
                raise _refusal(response)
            for event, data in _events(response.iter_lines()):
                arrived_ms = (time.perf_counter() - began) * 1e3
                if event == "part":
                    first_ms = arrived_ms if first_ms is None else first_ms
                    parts.append(_decoded(data, _Part).text)
                elif event == "answer":
                    answer = _decoded(data, Answer)
                    return Asked(answer, arrived_ms, dict(answer.timings_ms), first_ms, "".join(parts))
                elif event == "error":
                    raise MlosError.from_dict(_decoded(data, _Failure).error)
    except httpx2.HTTPError as error:
        raise WorkerError(f"the stream broke: {type(error).__name__}: {error}") from error
    raise WorkerError(f"the stream ended after {len(parts)} parts without an answer")


def _events(lines: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Name and data of each event of an event stream (WHATWG HTML, section 9.2), as soon as it is complete."""
    event = "message"
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            yield event, "\n".join(data).encode()
        if not line:
            event, data = "message", []
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)


def _decoded(content: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        shown = content[:_SHOWN].decode(errors="replace")
        raise WorkerError(f"not a V1 response: {error}: {shown!r}") from error


def _refusal(response: httpx2.Response) -> MlosError:
    return WorkerError(f"the server answered {response.status_code}: {response.text[:_SHOWN]}")
