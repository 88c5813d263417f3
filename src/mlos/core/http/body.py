"""A request's body: read within limits, then understood as a V1 request, or refused, saying what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request

from mlos.core.http import forms
from mlos.core.http.errors import MediaTypeError, SlowRequestError
from mlos.errors import InvalidInputError, PayloadTooLargeError
from mlos.model import InferenceRequest

T = TypeVar("T")

_DECODER = msgspec.json.Decoder(InferenceRequest)
_EXAMPLE = '{"text": "..."}'
_WRONG_TYPE = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<got>[^`]+)`(?: - at `\$\.?(?P<field>.*)`)?")
_OUT_OF_BOUNDS = re.compile(r"Expected (?P<expected>`[^`]+` .+) - at `\$\.?(?P<field>.*)`$")
_NOT_AMONG = re.compile(r"Invalid enum value (?P<got>.+) - at `\$\.?(?P<field>.*)`$", re.DOTALL)
_NOT_BASE64 = re.compile(r"Invalid base64 encoded string(?: - at `\$\.?(?P<field>.*)`)")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_UNKNOWN = re.compile(
    r"Object contains unknown field `(?P<field>.*?)`(?: - at `\$\.?(?P<place>[^`]*)`)?$", re.DOTALL
)
_LINGER_SECONDS = 2.0
_LINGER_LIMITS = 4
_AT_BYTE = re.compile(r"\(byte (\d+)\)")


async def read(request: Request, *, limit: int, silence: float, deadline: float) -> bytes:
    """The whole body.

    ``silence`` is how many seconds may pass without a byte; ``deadline`` is the event loop's time by which all
    of it must be there.

    Raises:
        PayloadTooLargeError: it is larger than ``limit``; no more than that is ever held.
        MediaTypeError: it is compressed.
        SlowRequestError: it did not come in time.
        ClientDisconnect: the client left.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise MediaTypeError(
            "compressed bodies are not read",
            field="Content-Encoding",
            expected="identity",
            got=request.headers["content-encoding"],
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        if "expect" not in request.headers:  # who asks first is answered before the body
            await _let_pass(request, limit)
        raise _too_large(f"{declared} bytes", limit)
    chunks, size = [], 0
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with asyncio.timeout_at(min(loop.time() + silence, deadline)):
                message = await request.receive()
        except TimeoutError as error:
            raise SlowRequestError(
                f"the request's body stopped coming after {size} bytes",
                field="body",
                expected=f"{declared or 'more'} bytes, none later than {silence:g} s after the last",
                got=f"{size} bytes",
            ) from error
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            await _let_pass(request, limit)
            raise _too_large(f"more than {limit} bytes", limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _let_pass(request: Request, limit: int) -> None:
    """Throw away a while of a body that is refused: a client that is cut off while it sends reads no answer."""
    passed = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_SECONDS):
            while passed < _LINGER_LIMITS * limit:
                message = await request.receive()
                passed += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def understand(request: Request, body: bytes) -> InferenceRequest:
    """A body as a V1 request, by its media type: a form, a file, else JSON, whatever it is said to be.

    Raises:
        InvalidInputError: it is not such a body (says where), or not such a request (names the field).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await forms.of_form(request.headers, body)
    if kind.startswith("audio/"):
        return forms.of_file(body, "audio", _query(request))
    if kind.startswith("image/") or kind == "application/octet-stream":
        return forms.of_file(body, "image", _query(request))
    return decode(_DECODER, body)


def _query(request: Request) -> QueryParams:
    """The fields of an address; what is not UTF-8 is refused, where starlette would replace it."""
    try:
        fields = request.scope["query_string"].decode("latin-1")  # the parser lets ASCII through alone
        return QueryParams(parse_qsl(fields, keep_blank_values=True, errors="strict"))
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            "the fields of the address are not UTF-8", field="query", expected="UTF-8", got=str(error)
        ) from error


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """A body of JSON as what ``decoder`` decodes.

    Raises:
        InvalidInputError: it is not JSON (says where), or of another structure (names the field).
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _not_a_request(str(error), decoder.type) from error
    except msgspec.DecodeError as error:
        raise _not_json(body, str(error)) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            "the body is not UTF-8", field="body", expected="JSON in UTF-8", got=str(error)
        ) from error
    except RecursionError as error:
        raise too_deep() from error


def convert(value: Any, kind: type[T]) -> T:
    """Decoded JSON as a ``kind``.

    Raises:
        InvalidInputError: it is of another structure (names the field).
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _not_a_request(str(error), kind) from error


def too_deep() -> InvalidInputError:
    """The error of a body with lists or objects in one another that Python cannot follow."""
    return InvalidInputError(
        "the body is nested too deeply", field="body", expected="lists as deep as a tensor", got="far deeper"
    )


def _too_large(got: str, limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"the request's body is larger than the limit of {limit} bytes",
        field="body",
        expected=f"at most {limit} bytes",
        got=got,
        hint="send less at a time, or raise the server's --max-body-bytes",
    )


def _not_a_request(text: str, kind: Any) -> InvalidInputError:
    if found := _NOT_BASE64.match(text):
        return InvalidInputError(
            f"{found['field']} is not base64",
            field=found["field"],
            expected="a file in base64, without line breaks and without a data: prefix",
            got="other characters",
        )
    if found := _WRONG_TYPE.match(text):
        field = found["field"] or "body"
        expected = found["expected"].replace(" | null", "").replace("str", "string")
        got = found["got"].replace("str", "string")
        return InvalidInputError(
            f"{field}: expected {expected}, got {got}", field=field, expected=expected, got=got
        )
    if found := _OUT_OF_BOUNDS.match(text):
        field, expected = found["field"], found["expected"].replace("`", "")
        return InvalidInputError(f"{field}: expected {expected}", field=field, expected=expected)
    if found := _NOT_AMONG.match(text):
        field, got = found["field"], found["got"]
        return InvalidInputError(f"{field}: {got} is none of its values", field=field, got=got)
    if found := _UNKNOWN.match(text):
        name, place = found["field"], found["place"]
        if place:
            return InvalidInputError(
                f"unknown field {name!r} in {place}", field=f"{place}.{name}", got=repr(name)
            )
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
        return InvalidInputError(f"unknown field {name!r}", field=name, expected=known, got=repr(name))
    if found := _MISSING.match(text):
        name = found["field"]
        return InvalidInputError(f"the field {name!r} is missing", field=name, expected=name, got="none")
    return InvalidInputError(f"the body is not a request: {text}", field="body", expected=_EXAMPLE)


def _not_json(body: bytes, text: str) -> InvalidInputError:
    found = _AT_BYTE.search(text)
    offset = min(int(found[1]), len(body)) if found else len(body)
    line = body.count(b"\n", 0, offset) + 1
    column = offset - (body.rfind(b"\n", 0, offset) + 1) + 1
    why = _AT_BYTE.sub("", text).removeprefix("JSON is malformed: ").strip()
    return InvalidInputError(
        f"the body is not JSON: {why} at line {line}, column {column}",
        field="body",
        expected=f"a JSON object such as {_EXAMPLE}",
        got=f"{why} at byte {offset}" if body else "an empty body",
    )
