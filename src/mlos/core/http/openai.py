"""OpenAI's chat completions: the same data plane in that protocol's dress, whole or streamed.

Reference: https://platform.openai.com/docs/api-reference/chat. A field that is not supported here is refused by
its name, never ignored.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos.core.dataplane import CLIENT_LEFT, DataPlane, Inference, Part
from mlos.core.http import body
from mlos.core.http.errors import JSON, headers_of
from mlos.core.http.events import EventStream, event, unless_left
from mlos.errors import InvalidInputError, MlosError, WorkerError
from mlos.model import InferenceRequest, Message


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One part of a message's content; texts alone are taken."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One message of the conversation."""

    role: str
    content: str | list[TextPart]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream holds besides its parts."""

    include_usage: bool = False


class ChatRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A chat completion request. ``top_k``, ``min_p`` and ``repetition_penalty`` are vLLM's additions."""

    model: str
    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class _Written(msgspec.Struct):
    """What a language model's task answers with, as far as this protocol tells it."""

    text: str
    finish_reason: Literal["stop", "length"]


_ANYTHING = msgspec.json.Decoder()
_PARAMETERS = (
    *("top_p", "presence_penalty", "frequency_penalty", "seed", "stop"),
    *("top_k", "min_p", "repetition_penalty"),
)
_LONGEST = 2000
"""Most characters of an error's text, which may quote the request."""
_TEMPERATURE = 1.0
"""What the protocol says where a request does not."""


class OpenAI:
    """The routes of this surface."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int, read_timeout: float) -> None:
        self._plane, self._limit, self._silence = plane, max_body_bytes, read_timeout

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are; the list of models is V1's."""
        return [Route("/v1/chat/completions", self.chat, methods=["POST"])]

    async def chat(self, request: Request) -> Response:
        """Answer one conversation; the client's leaving cancels it."""
        try:
            return await self._chat(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        except MlosError as error:
            return Response(msgspec.json.encode(_error(error)), error.http_status, headers_of(error), JSON)

    async def _chat(self, request: Request) -> Response:
        data = await body.read(
            request,
            limit=self._limit,
            silence=self._silence,
            deadline=asyncio.get_running_loop().time() + self._plane.timeout,
        )
        asked = body.convert(_without_nulls(body.decode(_ANYTHING, data)), ChatRequest)
        inference_request = _inference_request(asked)
        arrived: float = request.state.arrived
        head = {
            "id": f"chatcmpl-{request.state.request_id}",
            "created": int(time.time()),
            "model": asked.model,
        }
        if asked.stream:
            answering = self._plane.stream(asked.model, inference_request, arrived)
            first = await unless_left(request.receive, anext(answering))
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(_chunks(head, first, answering, usage=usage), answering, silence=self._silence)
        inference = await unless_left(
            request.receive, self._plane.infer(asked.model, inference_request, arrived)
        )
        return Response(msgspec.json.encode(_completion(head, inference)), 200, None, JSON)


def _without_nulls(asked: Any) -> Any:
    """The request without fields that are null, which clients send for absent ones."""
    if isinstance(asked, dict):
        return {name: _without_nulls(value) for name, value in asked.items() if value is not None}
    return [_without_nulls(each) for each in asked] if isinstance(asked, list) else asked


def _inference_request(asked: ChatRequest) -> InferenceRequest:
    if asked.n not in (None, 1):
        raise InvalidInputError(
            "n: one completion is made at a time", field="n", expected="1", got=str(asked.n)
        )
    parameters: dict[str, Any] = {
        name: value for name in _PARAMETERS if (value := getattr(asked, name)) is not None
    }
    parameters["temperature"] = asked.temperature if asked.temperature is not None else _TEMPERATURE
    most = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    if most is not None:
        parameters["max_tokens"] = most
    messages = [Message(each.role, _text(each.content)) for each in asked.messages]
    return InferenceRequest(messages=messages, task="chat", stream=bool(asked.stream), parameters=parameters)


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _completion(head: dict[str, Any], inference: Inference) -> dict[str, Any]:
    written = _written(inference)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": written.text, "refusal": None},
        "logprobs": None,
        "finish_reason": written.finish_reason,
    }
    return {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": _usage(inference),
        "system_fingerprint": inference.digest[:12],
    }


async def _chunks(
    head: dict[str, Any],
    first: Part | Inference,
    rest: AsyncGenerator[Part | Inference, None],
    *,
    usage: bool,
) -> AsyncGenerator[bytes, None]:
    """The role, each part's text, why it ended, what it used if asked for, and the protocol's last word."""
    head = {**head, "object": "chat.completion.chunk"}

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**head, "choices": [choice]} | ({"usage": None} if usage else {}))

    try:
        yield chunk({"role": "assistant", "content": ""})
        item = first
        while not isinstance(item, Inference):
            yield chunk({"content": item.text})
            item = await anext(rest)
        yield chunk({}, _written(item).finish_reason)
        if usage:
            yield event({**head, "choices": [], "usage": _usage(item)})
        yield event(b"[DONE]")
    except MlosError as error:
        yield event(_error(error))


def _written(inference: Inference) -> _Written:
    try:
        return msgspec.json.decode(inference.result, type=_Written)
    except msgspec.DecodeError as error:
        raise WorkerError(f"the worker of {inference.model} answered nonsense: {error}") from error


def _usage(inference: Inference) -> dict[str, int]:
    prompt, completion = inference.tokens.get("prompt", 0), inference.tokens.get("completion", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _error(error: MlosError) -> dict[str, Any]:
    kind = "invalid_request_error" if error.http_status < 500 else "server_error"
    message = error.message
    if error.expected and error.expected not in message:
        message += f": expected {error.expected}"
    if error.hint:
        message += f" (try: {error.hint})"
    # What V1 calls a parameter is a field of its own here.
    field = error.field.removeprefix("parameters.") if error.field else None
    return {
        "error": {
            "message": message[:_LONGEST],
            "type": kind,
            "param": field[:_LONGEST] if field else None,
            "code": error.code,
        }
    }
