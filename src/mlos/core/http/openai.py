"""OpenAI's chat completions, completions and embeddings: the same data plane in that protocol's dress.

Reference: https://platform.openai.com/docs/api-reference. A field that is not supported here is refused by its
name, never ignored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos.core.dataplane import CLIENT_LEFT, DataPlane, Inference, Part
from mlos.core.http import body
from mlos.core.http.embeddings import EmbeddingsRequest, embeddings, embeddings_request
from mlos.core.http.errors import JSON, headers_of
from mlos.core.http.events import EventStream, event, unless_left
from mlos.core.http.writing import CHAT, COMPLETIONS, Dress, Writing, usage_of
from mlos.core.written import written
from mlos.errors import MlosError

_ANYTHING = msgspec.json.Decoder()
_LONGEST = 2000
"""Most characters of an error's text, which may quote the request."""
_FIELDS = {"text": "input", "texts": "input"}
"""What embeddings call the fields of ours."""


class OpenAI:
    """The routes of this surface."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int, read_timeout: float) -> None:
        self._plane, self._limit, self._silence = plane, max_body_bytes, read_timeout

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are; the list of models is V1's."""
        return [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def chat(self, request: Request) -> Response:
        """The next turn of a conversation; the client's leaving cancels it."""
        return await _answered(self._write(request, CHAT))

    async def completions(self, request: Request) -> Response:
        """A prompt, continued; the client's leaving cancels it."""
        return await _answered(self._write(request, COMPLETIONS))

    async def embeddings(self, request: Request) -> Response:
        """The vector of each text; the client's leaving cancels it."""
        return await _answered(self._embed(request), _FIELDS)

    async def _write(self, request: Request, dress: Dress[Any]) -> Response:
        asked: Writing = await self._read(request, dress.kind)
        inference_request = dress.request(asked)
        arrived: float = request.state.arrived
        head = {
            "id": f"{dress.prefix}-{request.state.request_id}",
            "created": int(time.time()),
            "model": asked.model,
        }
        if asked.stream:
            answering = self._plane.stream(asked.model, inference_request, arrived)
            first = await unless_left(request.receive, anext(answering))
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            events = _chunks(dress, head, first, answering, usage=usage)
            return EventStream(events, answering, silence=self._silence)
        inference = await unless_left(
            request.receive, self._plane.infer(asked.model, inference_request, arrived)
        )
        content = {
            **head,
            "object": dress.whole,
            "choices": [dress.choice(written(inference))],
            "usage": usage_of(inference),
            "system_fingerprint": inference.digest[:12],
        }
        return Response(msgspec.json.encode(content), 200, None, JSON)

    async def _embed(self, request: Request) -> Response:
        asked = await self._read(request, EmbeddingsRequest)
        inference = await unless_left(
            request.receive,
            self._plane.infer(asked.model, embeddings_request(asked), request.state.arrived),
        )
        return Response(msgspec.json.encode(embeddings(asked, inference)), 200, None, JSON)

    async def _read(self, request: Request, kind: type[body.T]) -> body.T:
        data = await body.read(
            request,
            limit=self._limit,
            silence=self._silence,
            deadline=asyncio.get_running_loop().time() + self._plane.timeout,
        )
        asked = body.decode(_ANYTHING, data)
        try:
            return body.convert(_without_nulls(asked), kind)
        except RecursionError as error:  # what the decoder can still follow may be too deep for Python
            raise body.too_deep() from error


async def _answered(answering: Awaitable[Response], fields: dict[str, str] | None = None) -> Response:
    try:
        return await answering
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)
    except MlosError as error:
        content = msgspec.json.encode(_error(error, fields or {}))
        return Response(content, error.http_status, headers_of(error), JSON)


def _without_nulls(asked: Any) -> Any:
    """The request without fields that are null, which clients send for absent ones."""
    if isinstance(asked, dict):
        return {name: _without_nulls(value) for name, value in asked.items() if value is not None}
    return [_without_nulls(each) for each in asked] if isinstance(asked, list) else asked


async def _chunks(
    dress: Dress[Any],
    head: dict[str, Any],
    first: Part | Inference,
    rest: AsyncGenerator[Part | Inference, None],
    *,
    usage: bool,
) -> AsyncGenerator[bytes, None]:
    """Each part's text, why it ended, what it used if asked for, and the protocol's last word."""
    head = {**head, "object": dress.part}

    def chunk(choice: dict[str, Any]) -> bytes:
        return event({**head, "choices": [choice]} | ({"usage": None} if usage else {}))

    try:
        for opening in dress.opening:
            yield chunk(opening)
        item = first
        while not isinstance(item, Inference):
            yield chunk(dress.delta(item.text, None))
            item = await anext(rest)
        yield chunk(dress.delta(None, written(item).finish_reason))
        if usage:
            yield event({**head, "choices": [], "usage": usage_of(item)})
        yield event(b"[DONE]")
    except MlosError as error:
        yield event(_error(error, {}))


def _error(error: MlosError, fields: dict[str, str]) -> dict[str, Any]:
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    message = error.message
    if error.expected and error.expected not in message:
        message += f": expected {error.expected}"
    if error.hint:
        message += f" (try: {error.hint})"
    # What V1 calls a parameter is a field of its own here.
    field = error.field.removeprefix("parameters.") if error.field else None
    if field is not None:
        field = fields.get(field, field)
    return {
        "error": {
            "message": message[:_LONGEST],
            "type": kind,
            "param": field[:_LONGEST] if field else None,
            "code": error.code,
        }
    }
