"""MLOS V1: inference with what a person has, and the list of models (which is OpenAI's list too)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos.core.dataplane import CLIENT_LEFT, DataPlane, Inference, Part
from mlos.core.http import body
from mlos.core.http.errors import JSON, MethodError, error_body
from mlos.core.http.events import EventStream, event, unless_left
from mlos.core.replica import Replica, State
from mlos.errors import MlosError
from mlos.model import Reference
from mlos.store import Broken


class V1:
    """The routes of this surface."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int, read_timeout: float) -> None:
        self._plane, self._limit, self._silence = plane, max_body_bytes, read_timeout

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are; a model's name may be a full reference, slashes and all."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}/inference", self.inference, methods=["POST"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
        ]

    async def inference(self, request: Request) -> Response:
        """Answer one request; the client's leaving cancels it."""
        arrived: float = request.state.arrived
        name, request_id = request.path_params["name"], request.state.request_id
        try:
            data = await body.read(
                request,
                limit=self._limit,
                silence=self._silence,
                deadline=asyncio.get_running_loop().time() + self._plane.timeout,
            )
            read = time.monotonic()
            asked = await body.understand(request, data)
            parsed = time.monotonic()
            if asked.stream:
                answering = self._plane.stream(name, asked, arrived)
                first = await unless_left(request.receive, anext(answering))
                return EventStream(_events(first, answering, request_id), answering, silence=self._silence)
            inference = await unless_left(request.receive, self._plane.infer(name, asked, arrived))
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        content = msgspec.json.encode(_answer(inference, request_id))
        done = time.monotonic()
        stages = {"read": read - arrived, "parse": parsed - read, "total": done - arrived}
        timing = [f"{name};dur={1e3 * seconds:.3f}" for name, seconds in stages.items()]
        timing += [f"{name};dur={milliseconds:.3f}" for name, milliseconds in inference.timings_ms.items()]
        return Response(content, 200, {"server-timing": ", ".join(timing)}, JSON)

    async def models(self, request: Request) -> Response:
        """Every model that is served, with its state, and those that cannot be, with the reason."""
        supervisor = self._plane.supervisor
        data = [row(replica) for replica in supervisor.models()]
        data += [_broken_row(broken) for broken in supervisor.broken()]
        return Response(msgspec.json.encode({"object": "list", "data": data}), 200, None, JSON)

    async def model(self, request: Request) -> Response:
        """One model of the list."""
        name = request.path_params["name"]
        if name.endswith("/inference"):
            raise HTTPException(MethodError.http_status, headers={"Allow": "POST"})
        return Response(msgspec.json.encode(row(self._plane.supervisor.find(name))), 200, None, JSON)


async def _events(
    first: Part | Inference, rest: AsyncGenerator[Part | Inference, None], request_id: str
) -> AsyncGenerator[bytes, None]:
    """Each part as an event ``part``, and the whole answer as the event ``answer``; an ``error`` ends them."""
    try:
        yield _event(first, request_id)
        async for item in rest:
            yield _event(item, request_id)
    except MlosError as error:
        yield event(error_body(error, request_id), "error")


def _event(item: Part | Inference, request_id: str) -> bytes:
    if isinstance(item, Inference):
        return event(_answer(item, request_id), "answer")
    return event(item, "part")


def _answer(inference: Inference, request_id: str) -> dict[str, Any]:
    return {
        "model": inference.model,
        "digest": inference.digest,
        "task": inference.task,
        "result": inference.result,
        "engine": inference.engine,
        "precision": inference.precision,
        "mode": inference.mode,
        "timings_ms": inference.timings_ms,
        "request_id": request_id,
    }


def row(replica: Replica) -> dict[str, Any]:
    """A model as lists tell it."""
    package, manifest, report = replica.package, replica.package.manifest, replica.report
    return {
        "id": package.name if package.owns_name else package.reference,
        "object": "model",
        "created": int(package.record.installed_at.timestamp()),
        "owned_by": _owner(package.reference),
        "reference": package.reference,
        "digest": package.digest,
        "tasks": manifest.tasks,
        "format": manifest.artifact.format,
        "precision": report.precision if report is not None else manifest.artifact.precision,
        "engine": f"{report.engine} {report.engine_version}" if report is not None else None,
        "chosen": replica.served_as.choice.reason if replica.served_as is not None else None,
        "state": replica.state,
        "reason": replica.reason,
        "load_seconds": replica.load_seconds,
        "load_stages": report.load_seconds if report is not None else None,
        "memory_bytes": replica.memory_bytes(),
        "peak_memory_bytes": replica.peak_memory_bytes(),
        "weights": manifest.weights,
    }


def _broken_row(broken: Broken) -> dict[str, Any]:
    unknown = (
        *("tasks", "format", "precision", "engine", "chosen", "weights"),
        *("load_seconds", "load_stages", "memory_bytes", "peak_memory_bytes"),
    )
    return {
        "id": broken.reference,
        "object": "model",
        "created": int(broken.record.installed_at.timestamp()) if broken.record else 0,
        "owned_by": "",
        "reference": broken.reference,
        "digest": broken.digest,
        "state": State.FAILED,
        "reason": broken.error.message,
        **dict.fromkeys(unknown),
    }


def _owner(reference: str) -> str:
    parsed = Reference.parse(reference)
    return parsed.source if parsed.source == "file" else parsed.namespace or parsed.source
