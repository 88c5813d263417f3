"""The Open Inference Protocol V2 over REST: the same data plane in that protocol's dress.

Tensors come and go as JSON or, by the binary tensor data extension, as raw bytes behind the JSON; those are
never made numbers of here. Reference: https://github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from mlos.core.dataplane import CLIENT_LEFT, DataPlane
from mlos.core.http import body
from mlos.core.http.errors import JSON, MethodError
from mlos.core.http.events import unless_left
from mlos.core.tensors import BYTES, check_form, from_raw, strings_from_raw, wrong
from mlos.core.v2 import Call, Given, Models, answer_of, ask_of, strings_from_json, urgency_of
from mlos.core.v2.models import name_of, version_of
from mlos.core.worker_protocol import Tensor, Wanted
from mlos.errors import InvalidInputError, UsageError

HEADER = "inference-header-content-length"
"""The header that says how many bytes of a body are JSON; raw tensors follow them."""
_SIZE = "binary_data_size"

_Length = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class InputTensor(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An input; ``data`` is a list, flat or nested, or stands as ``binary_data_size`` bytes behind the JSON."""

    name: str
    shape: list[_Length]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = msgspec.field(
        default_factory=lambda: msgspec.Raw(b"")
    )  # a default itself has no schema


class OutputParameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """In which form an output is wanted."""

    binary_data: bool | None = None
    classification: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


class RequestedOutput(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An output that is wanted."""

    name: str
    parameters: OutputParameters | None = None


class InferRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An inference request. ``model_name`` is what KServe's client adds; the address says which model it is."""

    inputs: list[InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None
    model_name: str | None = None


class IndexRequest(msgspec.Struct, frozen=True):
    """Which models are to be listed: all, or those alone that are ready."""

    ready: bool = False


class LoadRequest(msgspec.Struct, frozen=True):
    """How a model is to be loaded."""

    parameters: dict[str, Any] | None = None


_INFER = msgspec.json.Decoder(InferRequest)
_INDEX = msgspec.json.Decoder(IndexRequest)
_LOAD = msgspec.json.Decoder(LoadRequest)
_UNLOAD = msgspec.json.Decoder(dict[str, Any])
_MODEL = ("/v2/models/{name:path}/versions/{version}", "/v2/models/{name:path}")
"""Where a model is; its name may be a full reference, slashes and all."""


_ASKED = ("infer", "generate", "generate_stream")
"""What a model's name does not end in: behind it these are addresses that are asked by POST."""


class V2:
    """The routes of this surface; health is the operators'."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int, read_timeout: float) -> None:
        self._plane, self._limit, self._silence = plane, max_body_bytes, read_timeout
        self._models = Models(plane)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are."""
        return [
            Route("/v2", self.server, methods=["GET"]),
            Route("/v2/models/stats", self.statistics, methods=["GET"]),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{name:path}/load", self.load, methods=["POST"]),
            *(Route(f"{model}/infer", self.infer, methods=["POST"]) for model in _MODEL),
            *(Route(f"{model}/ready", self.ready, methods=["GET"]) for model in _MODEL),
            *(Route(f"{model}/config", self.config, methods=["GET"]) for model in _MODEL),
            *(Route(f"{model}/stats", self.statistics, methods=["GET"]) for model in _MODEL),
            *(Route(model, self.metadata, methods=["GET"]) for model in _MODEL),
        ]

    @property
    def routes_of_administration(self) -> Sequence[BaseRoute]:
        """Those that take a model from others."""
        return [Route("/v2/repository/models/{name:path}/unload", self.unload, methods=["POST"])]

    async def server(self, request: Request) -> Response:
        """The server's metadata."""
        return _json(self._models.server())

    async def metadata(self, request: Request) -> Response:
        """A model's tensors."""
        name, version = _named(request)
        if (version or name).rpartition("/")[2] in _ASKED and "/" in name + version:
            raise HTTPException(MethodError.http_status, headers={"Allow": "POST"})
        return _json(self._models.metadata(name, version))

    async def ready(self, request: Request) -> Response:
        """200 if the model takes requests, else 503 with the reason."""
        name, version = _named(request)
        reason = self._models.unready(name, version)
        told = {"name": name, "ready": reason is None, "reason": reason}
        return _json(told, 200 if reason is None else 503)

    async def config(self, request: Request) -> Response:
        """A model's configuration."""
        return _json(self._models.config(*_named(request)))

    async def statistics(self, request: Request) -> Response:
        """How often a model was asked and how long it took; of all models if none is named."""
        return _json(self._models.statistics(*_named(request)))

    async def index(self, request: Request) -> Response:
        """Every model with its state."""
        asked = await self._read(request, _INDEX)
        return _json(self._models.index(ready=asked.ready))

    async def load(self, request: Request) -> Response:
        """Load a model now."""
        asked = await self._read(request, _LOAD)
        name, _ = _named(request)
        try:
            load = self._models.load(name, asked.parameters, administrator=request.state.administrator)
            await unless_left(request.receive, load)
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        return _json({})

    async def unload(self, request: Request) -> Response:
        """End a model's worker; it is not served until it is loaded again."""
        await self._read(request, _UNLOAD)
        await self._models.unload(_named(request)[0])
        return _json({})

    async def infer(self, request: Request) -> Response:
        """Answer one request; the client's leaving cancels it."""
        name, version = _named(request)
        try:
            data = await self._body(request)
            asked, call = _call(data, request.headers.get(HEADER))
            package = self._models.find(name, version).package
            ask, urgency = ask_of(call, package.manifest), urgency_of(call.parameters)
            if ask.request.stream:
                raise InvalidInputError(
                    "parameter 'stream': an answer in parts has an address of its own",
                    field="parameters.stream",
                    expected="false",
                    got="true",
                    hint="POST /v2/models/{name}/generate_stream",
                )
            inference = await unless_left(
                request.receive,
                self._plane.infer(package.digest, ask, request.state.arrived, urgency),
            )
        except ClientDisconnect:
            return Response(status_code=CLIENT_LEFT)
        head = {"model_name": name_of(package), "model_version": version_of(package)}
        if asked.id is not None:
            head["id"] = asked.id
        return TensorResponse(head, answer_of(call, inference))

    async def _body(self, request: Request) -> bytes:
        deadline = asyncio.get_running_loop().time() + self._plane.timeout
        return await body.read(request, limit=self._limit, silence=self._silence, deadline=deadline)

    async def _read(self, request: Request, decoder: msgspec.json.Decoder[body.T]) -> body.T:
        """A body of JSON, which may be left out."""
        return body.decode(decoder, await self._body(request) or b"{}")


class TensorResponse(Response):
    """Tensors: those of JSON in it, arrays as raw bytes behind it, written from where they lie."""

    def __init__(self, head: dict[str, Any], tensors: Sequence[Tensor]) -> None:
        raw = [tensor for tensor in tensors if not isinstance(tensor.data, bytes)]
        content = msgspec.json.encode({**head, "outputs": [_output(tensor) for tensor in tensors]})
        super().__init__(content, media_type="application/octet-stream" if raw else JSON)
        self._raw = [memoryview(tensor.data.data).cast("B") for tensor in raw if tensor.data.nbytes]
        if raw:
            self.headers[HEADER] = str(len(content))
            self.headers["content-length"] = str(len(content) + sum(len(part) for part in self._raw))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, part by part."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        parts = [self.body, *self._raw]
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})


def _output(tensor: Tensor) -> dict[str, Any]:
    told = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
    if isinstance(tensor.data, bytes):
        return {**told, "data": msgspec.Raw(tensor.data)}
    return {**told, "parameters": {_SIZE: tensor.data.nbytes}}


def _call(data: bytes, header: str | None) -> tuple[InferRequest, Call]:
    """A body, and the length of its JSON where a header says one."""
    length = len(data)
    if header is not None:
        if not header.isdecimal() or int(header) > length:
            raise UsageError(
                f"the header {HEADER} is not the length of a part of the body",
                field=HEADER,
                expected=f"a whole number up to {length}",
                got=header[:100],
            )
        length = int(header)
    asked = body.decode(_INFER, data if length == len(data) else data[:length])
    raw = memoryview(data)[length:]
    given, at = [], 0
    for tensor in asked.inputs:
        size = _raw_size(tensor)
        if size is not None and size > len(raw) - at:
            raise wrong(tensor.name, f"{size} bytes behind the JSON", f"{len(raw) - at} bytes")
        given.append(_given(tensor, None if size is None else raw[at : at + size]))
        at += size or 0
    if at != len(raw):
        raise InvalidInputError(
            f"{len(raw) - at} bytes behind the JSON belong to no input",
            field="inputs",
            expected=f"{at} bytes",
            got=f"{len(raw)} bytes",
            hint=f"each input whose data stands there says its {_SIZE}",
        )
    parameters = asked.parameters or {}
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InvalidInputError(
            "parameter 'binary_data_output': expected true or false",
            field="parameters.binary_data_output",
            expected="true or false",
            got=f"{binary!r:.100}",
        )
    wanted = None if asked.outputs is None else [_wanted(output, binary=binary) for output in asked.outputs]
    return asked, Call(given, wanted, parameters, binary)


def _given(tensor: InputTensor, raw: memoryview | None) -> Given:
    name, datatype, shape = tensor.name, tensor.datatype, tensor.shape
    check_form(name, datatype, shape)
    text = memoryview(tensor.data)
    held = len(text) > 0 and bytes(text[:4]) != b"null"
    if held == (raw is not None):
        raise wrong(name, f"either data or {_SIZE}", "both" if held else "neither")
    if raw is None:
        return Given(name, datatype, shape, strings_from_json(name, shape, text) if datatype == BYTES else text)
    if datatype == BYTES:
        return Given(name, datatype, shape, strings_from_raw(name, shape, raw))
    return Given(name, datatype, shape, from_raw(name, datatype, shape, raw))


def _raw_size(tensor: InputTensor) -> int | None:
    for name, value in (tensor.parameters or {}).items():
        if name != _SIZE or isinstance(value, bool) or not isinstance(value, int) or value < 0:
            tensor_name = tensor.name[:100]
            field = f"inputs.{tensor_name}.parameters.{name[:100]}"
            raise InvalidInputError(
                f"input tensor '{tensor_name}': parameter {name[:100]!r} is unknown, or no such number",
                field=field,
                expected=f"{_SIZE}, a whole number from 0",
                got=f"{value!r:.100}",
            )
    return (tensor.parameters or {}).get(_SIZE)


def _wanted(output: RequestedOutput, *, binary: bool) -> Wanted:
    told = output.parameters or OutputParameters()
    return Wanted(output.name, binary if told.binary_data is None else told.binary_data, told.classification)


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _json(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, None, JSON)
