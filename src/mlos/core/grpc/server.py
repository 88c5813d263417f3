"""The gRPC server: its port, its limits, and what every call is wrapped in."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the library's own lines are no JSON, and stderr is our log

import grpc

from mlos.core.access import Gate, Right
from mlos.core.dataplane import CLIENT_LEFT, DataPlane
from mlos.core.grpc.messages import HEALTH, INFERENCE, Messages
from mlos.core.grpc.service import Context, Health, Inferring, authorization_of
from mlos.core.http.envelope import request_id_of
from mlos.core.http.errors import text_of
from mlos.core.log import fields
from mlos.errors import MlosError, UnavailableError, UsageError

_ENVELOPE_BYTES = 64 << 10
"""What a message may have besides its tensors' bytes: names, shapes, parameters."""
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    CLIENT_LEFT: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_OPEN = ("ServerLive", "ServerReady")
"""What whoever watches over the server asks, and no token is needed for."""
_ADMINISTRATION = ("RepositoryModelUnload",)

_log = logging.getLogger(__name__)


class GrpcServer:
    """One port on which the protocol's services are answered, in the event loop of the data plane."""

    def __init__(self, plane: DataPlane, gate: Gate, *, max_body_bytes: int) -> None:
        messages = Messages()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_body_bytes + _ENVELOPE_BYTES),
                # Else a second server would share the port instead of being refused it.
                ("grpc.so_reuseport", 0),
            ]
        )
        services = ((INFERENCE, Inferring(plane, messages, gate)), (HEALTH, Health(plane, messages)))
        for name, service in services:
            self._server.add_generic_rpc_handlers((_handlers(messages, name, service, gate),))

    async def start(self, host: str, port: int) -> str:
        """Listen; returns the address that clients connect to.

        Raises:
            UsageError: the address is taken or not ours.
        """
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as error:
            raise UsageError(
                f"cannot listen on {host} port {port} for gRPC",
                field="grpc_port",
                expected="a free port of an address of this machine",
                got=f"{shown}:{port}",
                hint="stop the program that uses the port, or choose another: --grpc-port 0 takes a free one",
            ) from error
        await self._server.start()
        return f"{shown}:{bound}"

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and cut off what is under way after so long."""
        await self._server.stop(seconds)


def _handlers(messages: Messages, name: str, service: Any, gate: Gate) -> grpc.GenericRpcHandler:
    """What gRPC calls for each method of a service."""
    handlers: dict[str, Any] = {}
    described: Mapping[str, Any] = {each.name: each for each in messages.pool.FindServiceByName(name).methods}
    for method, (takes, gives) in messages.methods(name).items():
        call, path = getattr(service, method), f"/{name}/{method}"
        if name != HEALTH and method not in _OPEN:
            call = _Guarded(call, gate, Right.ADMINISTRATION if method in _ADMINISTRATION else Right.INFERENCE)
        if described[method].client_streaming:
            handler = grpc.stream_stream_rpc_method_handler(
                _many(call, path), takes.FromString, gives.SerializeToString
            )
        elif described[method].server_streaming:
            handler = grpc.unary_stream_rpc_method_handler(
                _many(call, path), takes.FromString, gives.SerializeToString
            )
        else:
            handler = grpc.unary_unary_rpc_method_handler(
                _one(call, path), takes.FromString, gives.SerializeToString
            )
        handlers[method] = handler
    return grpc.method_handlers_generic_handler(name, handlers)


class _Guarded:
    """A method that needs a right."""

    def __init__(self, method: Any, gate: Gate, right: Right) -> None:
        self._method, self._gate, self._right = method, gate, right

    def __call__(self, request: Any, context: Context) -> Any:
        """What the method returns, if it may be called."""
        self._gate.check(self._right, authorization_of(context))
        return self._method(request, context)


def _one(method: Any, path: str) -> Any:
    async def call(request: Any, context: Context) -> Any:
        async with _enveloped(path, context):
            return await method(request, context)

    return call


def _many(method: Any, path: str) -> Any:
    async def call(request: Any, context: Context) -> AsyncGenerator[Any, None]:
        async with _enveloped(path, context):
            async for response in method(request, context):
                yield response

    return call


@asynccontextmanager
async def _enveloped(path: str, context: Context) -> AsyncIterator[None]:
    """Give a call its id and a line in the log, and its client an answer even where our own code failed."""
    started, code = time.monotonic(), grpc.StatusCode.OK
    proposed = dict(context.invocation_metadata() or ()).get("x-request-id", "")
    request_id = request_id_of(proposed if isinstance(proposed, str) else "")
    trailing = [("x-request-id", request_id)]
    context.set_trailing_metadata(tuple(trailing))
    try:
        yield
    except MlosError as error:
        code = _CODES.get(error.http_status, grpc.StatusCode.INTERNAL)
        trailing.append(("mlos-code", error.code))
        if isinstance(error, UnavailableError):
            trailing.append(("retry-after", str(max(1, math.ceil(error.retry_after)))))
        await context.abort(code, text_of(error), tuple(trailing))
    except (asyncio.CancelledError, GeneratorExit):
        code = grpc.StatusCode.CANCELLED
        raise
    except grpc.aio.AbortError:
        code = grpc.StatusCode.NOT_FOUND  # the one thing that a method itself aborts for
        raise
    except Exception:  # logged with its place; the client is told and the server goes on
        code = grpc.StatusCode.INTERNAL
        _log.exception("a call met a bug", extra=fields(request_id=request_id))
        await context.abort(code, "the server met a bug; its log has the request id", tuple(trailing))
    finally:
        _log.log(
            logging.INFO if "Infer" in path or code is not grpc.StatusCode.OK else logging.DEBUG,
            "request",
            extra=fields(
                request_id=request_id,
                method="gRPC",
                path=path,
                status=code.name,
                milliseconds=round(1e3 * (time.monotonic() - started), 2),
            ),
        )
