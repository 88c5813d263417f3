"""One request to a served model, and its answer, checked before anyone believes it.

Whatever goes wrong on the way (the connection, the status, the shape of the answer) is an error of ours with
one message: a server that answers nonsense has failed, and must not bring the validation down with it.
"""

from __future__ import annotations

import re
import time
from typing import Any

import httpx2
import msgspec

from mlos.errors import MlosError, WorkerError

_SERVER_TIMING = re.compile(r"([A-Za-z0-9_-]+)\s*;(?:[^,]*;)?\s*dur=([0-9.]+)")
_SHOWN = 500


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
    """An answer, the client's end-to-end time in ms, and all stages that the server reported, in ms."""

    answer: Answer
    taken_ms: float
    stages_ms: dict[str, float]


def ask(client: httpx2.Client, url: str, body: dict[str, Any]) -> Asked:
    """Post ``body`` and take the answer; the clock stops when its last byte is here, before it is read.

    Raises:
        MlosError: if there is no answer, or it is an error, or not a V1 response.
    """
    content = msgspec.json.encode(body)
    began = time.perf_counter()
    try:
        response = client.post(url, content=content, headers={"Content-Type": "application/json"})
    except httpx2.HTTPError as error:
        raise WorkerError(f"no answer: {type(error).__name__}: {error}") from error
    taken_ms = (time.perf_counter() - began) * 1e3
    if response.status_code != httpx2.codes.OK:
        raise _refusal(response)
    try:
        answer = msgspec.json.decode(response.content, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkerError(f"not a V1 response: {error}: {response.text[:_SHOWN]!r}") from error
    # The header adds what the worker cannot know: the front's own stages, such as writing the answer as JSON.
    reported = _SERVER_TIMING.findall(response.headers.get("Server-Timing", ""))
    front = {name.replace("-", "_"): float(ms) for name, ms in reported if name != "total"}
    return Asked(answer, taken_ms, {**front, **answer.timings_ms})


def _refusal(response: httpx2.Response) -> MlosError:
    return WorkerError(f"the server answered {response.status_code}: {response.text[:_SHOWN]}")
