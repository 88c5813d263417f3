"""Errors as HTTP answers: ``{"error": {code, message, field, expected, got, hint, request_id}}``."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from mlos.errors import AuthenticationError, MlosError, PayloadTooLargeError, UnavailableError, UsageError

JSON = "application/json"
_LONGEST = {"message": 2000, "field": 300, "expected": 2000, "got": 300}
"""Most characters of what may quote a request."""


class MethodError(UsageError):
    """The address exists, the method does not."""

    code = "method_not_allowed"
    http_status = 405


class MediaTypeError(UsageError):
    """The body is of a kind or in an encoding that is not read."""

    code = "unsupported_media_type"
    http_status = 415


class SlowRequestError(UsageError):
    """The client did not send its request in time."""

    code = "request_timeout"
    http_status = 408


class HeadTooLargeError(UsageError):
    """The request line and the headers together are over the limit."""

    code = "headers_too_large"
    http_status = 431


class AddressError(UsageError):
    """Nothing has this address."""

    code = "not_found"
    http_status = 404


def error_body(error: MlosError, request_id: str | None) -> bytes:
    """The error as JSON; what came from the request is cut short in it."""
    return msgspec.json.encode({"error": {**_told(error), "request_id": request_id}})


def _told(error: MlosError) -> dict[str, Any]:
    return {
        key: value[: _LONGEST[key]] + "…" if key in _LONGEST and value and len(value) > _LONGEST[key] else value
        for key, value in error.as_dict().items()
    }


def flat_error_body(error: MlosError, request_id: str | None) -> bytes:
    """The error in V2's dress: ``error`` is one text that says it all, and the details stand beside it."""
    return msgspec.json.encode({"error": text_of(error), **_told(error), "request_id": request_id})


def text_of(error: MlosError) -> str:
    """All that an error has to say as one text, for protocols that have no room for more."""
    told = error.message
    for name, value in (("expected", error.expected), ("got", error.got)):
        if value and value not in told:
            told += f"; {name} {value}"
    if error.hint:
        told += f" (try: {error.hint})"
    most = _LONGEST["message"]
    return told[:most] + "…" if len(told) > most else told


def answer_error(error: MlosError, request_id: str | None, path: str = "") -> Response:
    """The whole answer, in the dress of the protocol that ``path`` belongs to."""
    body = flat_error_body if path == "/v2" or path.startswith("/v2/") else error_body
    return Response(body(error, request_id), error.http_status, headers_of(error), JSON)


def headers_of(error: MlosError) -> dict[str, str]:
    """The headers that go with an error: when to come back, how to be let in, whether the connection ends."""
    headers = {}
    if isinstance(error, UnavailableError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, AuthenticationError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, SlowRequestError | PayloadTooLargeError):
        headers["connection"] = "close"  # the rest of the request is not waited for
    return headers


async def answer_mlos_error(request: Request, error: Exception) -> Response:
    """What starlette calls for an error that was raised on purpose."""
    assert isinstance(error, MlosError)
    return answer_error(error, request.state.request_id, request.url.path)


async def answer_http_error(request: Request, error: Exception) -> Response:
    """What starlette calls for its own errors: no such address, no such method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    allowed = (error.headers or {}).get("Allow")
    told: MlosError
    if error.status_code == MethodError.http_status:
        told = MethodError(f"not answered: {where}", field="method", expected=allowed, got=request.method)
    else:
        told = AddressError(
            f"nothing is at {where}",
            hint="POST /v1/models/{name}/inference, POST /v1/chat/completions, POST /v2/models/{name}/infer, "
            "GET /v1/models, /openapi.json, /health, /metrics, /version",
        )
    response = answer_error(told, request.state.request_id, request.url.path)
    if allowed:
        response.headers["allow"] = allowed
    return response
