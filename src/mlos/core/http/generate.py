"""V2's generate extension: a text in, a text out, whole or as server-sent events.

Reference: Triton's generate extension. What stands beside ``text_input`` goes to the task as its parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos.core.dataplane import CLIENT_LEFT, DataPlane, Inference, Part
from mlos.core.http import body
from mlos.core.http.errors import JSON, flat_error_body
from mlos.core.http.events import EventStream, event, unless_left
from mlos.core.v2 import Models, urgency_of
from mlos.core.v2.models import name_of, version_of
from mlos.core.written import WRITING, written
from mlos.errors import InvalidInputError, MlosError
from mlos.model import InferenceRequest, Manifest

_DECODER = msgspec.json.Decoder(dict[str, Any])
_MODEL = ("/v2/models/{name:path}/versions/{version}", "/v2/models/{name:path}")
_URGENCY = ("timeout", "priority")


class Generate:
    """The routes of this extension."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int, read_timeout: float) -> None:
        self._plane, self._limit, self._silence = plane, max_body_bytes, read_timeout
        self._models = Models(plane)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are."""
        return [
            *(Route(f"{model}/generate", self.generate, methods=["POST"]) for model in _MODEL),
            *(Route(f"{model}/generate_stream", self.generate_stream, methods=["POST"]) for model in _MODEL),
        ]

    async def generate(self, request: Request) -> Response:
        """The whole text."""
        return await self._answer(request, stream=False)

    async def generate_stream(self, request: Request) -> Response:
        """The text in parts, an event each; the last says why it ended."""
        return await self._answer(request, stream=True)

    async def _answer(self, request: Request, *, stream: bool) -> Response:
        name, version = request.path_params["name"], request.path_params.get("version", "")
        try:
            data = await body.read(
                request,
                limit=self._limit,
                silence=self._silence,
                deadline=asyncio.get_running_loop().time() + self._plane.timeout,
            )
            package = self._models.find(name, version).package
            given = body.decode(_DECODER, data)
            asked = _request(given, package.manifest, stream=stream)
            urgency = urgency_of(_parameters(given))
            head = {"model_name": name_of(package), "model_version": version_of(package)}
            if "id" in given:
                head["id"] = given["id"]
            if stream:
                answering = self._plane.stream(package.digest, asked, request.state.arrived, urgency)
                first = await unless_left(request.receive, anext(answering))
                events = _events(head, first, answering, request.state.request_id)
                return EventStream(events, answering, silence=self._silence)
            inference = await unless_left(
                request.receive, self._plane.infer(package.digest, asked, request.state.arrived, urgency)
            )
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        content = {**head, "text_output": written(inference).text, **_last(inference)}
        return Response(msgspec.json.encode(content), 200, None, JSON)


async def _events(
    head: dict[str, Any],
    first: Part | Inference,
    rest: AsyncGenerator[Part | Inference, None],
    request_id: str,
) -> AsyncGenerator[bytes, None]:
    try:
        item = first
        while not isinstance(item, Inference):
            yield event({**head, "text_output": item.text})
            item = await anext(rest)
        yield event({**head, "text_output": "", **_last(item)})
    except MlosError as error:
        yield event(flat_error_body(error, request_id))


def _last(inference: Inference) -> dict[str, Any]:
    """What is known at the end alone."""
    tokens = inference.tokens
    return {
        "finish_reason": written(inference).finish_reason,
        "prompt_tokens": tokens.get("prompt", 0),
        "completion_tokens": tokens.get("completion", 0),
    }


def _parameters(given: dict[str, Any]) -> dict[str, Any]:
    """Those of ``parameters`` and those beside it, which Triton's back ends take as well."""
    nested = given.get("parameters", {})
    if not isinstance(nested, dict):
        raise InvalidInputError(
            "parameters: expected object", field="parameters", expected="object", got=f"{nested!r:.100}"
        )
    beside = {name: value for name, value in given.items() if name not in ("id", "text_input", "parameters")}
    return {**nested, **beside}


def _request(given: dict[str, Any], manifest: Manifest, *, stream: bool) -> InferenceRequest:
    for name, needed in (("text_input", True), ("id", False)):
        value = given.get(name)
        if not isinstance(value, str) and (needed or name in given):
            raise InvalidInputError(
                f"{name}: expected string", field=name, expected="string", got=f"{value!r:.100}"
            )
    task = next((task for task in WRITING if task in manifest.tasks), None)
    if task is None:
        raise InvalidInputError(
            f"model {manifest.name} does not write text",
            field="model",
            expected=f"a model with the task {' or '.join(WRITING)}",
            got=", ".join(manifest.tasks),
        )
    parameters = {name: value for name, value in _parameters(given).items() if name not in _URGENCY}
    if parameters.pop("stream", stream) is not stream:
        raise InvalidInputError(
            "parameter 'stream' is not what this address does",
            field="parameters.stream",
            expected="true at generate_stream, false at generate",
            got="the other",
        )
    return InferenceRequest(prompt=given["text_input"], task=task, stream=stream, parameters=parameters)
