"""The methods of the inference service and of the health service: thin shells over the data plane."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, TypeAlias

import grpc

from mlos.core.access import Gate, Right
from mlos.core.dataplane import DataPlane, Inference, Part
from mlos.core.grpc.infer import call_of, parameters_of, response_of
from mlos.core.grpc.messages import HEALTH, INFERENCE, Messages
from mlos.core.http.errors import text_of
from mlos.core.tensors import BYTES, strings_to_raw
from mlos.core.v2 import Models, answer_of, ask_of, urgency_of
from mlos.core.v2.models import name_of, version_of
from mlos.core.worker_protocol import Tensor
from mlos.errors import InvalidInputError, MlosError

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
MOST_AT_ONCE = 64
"""Requests of one stream that are under way at a time."""
_WATCH_SECONDS = 0.2


class Inferring:
    """The service ``inference.GRPCInferenceService``; each method is named as the protocol names it."""

    def __init__(self, plane: DataPlane, messages: Messages, gate: Gate) -> None:
        self._plane, self._messages, self._gate = plane, messages, gate
        self._models = Models(plane)

    async def ServerLive(self, request: Any, context: Context) -> Any:  # noqa: N802  # the protocol's name
        """That this is answered says that the event loop turns."""
        return self._messages["inference.ServerLiveResponse"](live=True)

    async def ServerReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Whether requests should come."""
        return self._messages["inference.ServerReadyResponse"](ready=self._plane.unready() is None)

    async def ModelReady(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Whether a model takes requests."""
        ready = self._models.unready(request.name, request.version) is None
        return self._messages["inference.ModelReadyResponse"](ready=ready)

    async def ServerMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        """What the server is and can."""
        return self._messages.read("inference.ServerMetadataResponse", self._models.server())

    async def ModelMetadata(self, request: Any, context: Context) -> Any:  # noqa: N802
        """A model's tensors."""
        told = self._models.metadata(request.name, request.version)
        return self._messages.read("inference.ModelMetadataResponse", told)

    async def ModelConfig(self, request: Any, context: Context) -> Any:  # noqa: N802
        """A model's configuration."""
        told = self._models.config(request.name, request.version)
        return self._messages.read("inference.ModelConfigResponse", {"config": told})

    async def ModelStatistics(self, request: Any, context: Context) -> Any:  # noqa: N802
        """How often a model was asked and how long it took; of all models if none is named."""
        told = self._models.statistics(request.name, request.version)
        return self._messages.read("inference.ModelStatisticsResponse", told)

    async def RepositoryIndex(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Every model with its state."""
        told = {"models": self._models.index(ready=request.ready)}
        return self._messages.read("inference.RepositoryIndexResponse", told)

    async def RepositoryModelLoad(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Load a model now."""
        rights = self._gate.rights(authorization_of(context))
        await self._models.load(
            request.model_name, request.parameters, administrator=Right.ADMINISTRATION in rights
        )
        return self._messages["inference.RepositoryModelLoadResponse"]()

    async def RepositoryModelUnload(self, request: Any, context: Context) -> Any:  # noqa: N802
        """End a model's worker; it is not served until it is loaded again."""
        await self._models.unload(request.model_name)
        return self._messages["inference.RepositoryModelUnloadResponse"]()

    async def ModelInfer(self, request: Any, context: Context) -> Any:  # noqa: N802
        """Answer one request; the client's leaving, or its deadline, cancels it."""
        if parameters_of(request.parameters).get("stream") is True:
            raise InvalidInputError(
                "parameter 'stream': an answer in parts needs the method ModelStreamInfer",
                field="parameters.stream",
                expected="false",
                got="true",
            )
        return await self._whole(request, time.monotonic(), context.time_remaining())

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[Any], context: Context
    ) -> AsyncGenerator[Any, None]:
        """Answer requests in their order, several under way at a time; an error ends none but its own."""
        begun: asyncio.Queue[tuple[Any, float, asyncio.Task[Any] | None] | None] = asyncio.Queue(MOST_AT_ONCE)
        tasks: set[asyncio.Task[Any]] = set()

        async def begin() -> None:
            async for request in requests:
                arrived, task = time.monotonic(), None
                if parameters_of(request.parameters).get("stream") is not True:
                    task = asyncio.create_task(self._whole(request, arrived, context.time_remaining()))
                    tasks.add(task)
                await begun.put((request, arrived, task))
            await begun.put(None)

        reading = asyncio.create_task(begin())
        tasks.add(reading)
        try:
            while (entry := await begun.get()) is not None:
                request, arrived, task = entry
                try:
                    if task is not None:
                        yield self._last(await task)
                        tasks.discard(task)
                        continue
                    remaining = context.time_remaining()
                    async with contextlib.aclosing(self._parts(request, arrived, remaining)) as responses:
                        async for response in responses:
                            yield response
                except MlosError as error:
                    yield self._failed(request, error)
        finally:
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _whole(self, request: Any, arrived: float, remaining: float | None) -> Any:
        call, package = call_of(request), self._models.find(request.model_name, request.model_version).package
        ask, urgency = ask_of(call, package.manifest), urgency_of(call.parameters)
        if remaining is not None:
            urgency = replace(urgency, timeout=min(urgency.timeout, remaining))
        inference = await self._plane.infer(package.digest, ask, arrived, urgency)
        head = {"model_name": name_of(package), "model_version": version_of(package), "id": request.id}
        return response_of(self._messages, head, answer_of(call, inference))

    async def _parts(self, request: Any, arrived: float, remaining: float | None) -> AsyncGenerator[Any, None]:
        """Each part of a text as the output ``text``, and the whole answer as ``result`` at last."""
        call, package = call_of(request), self._models.find(request.model_name, request.model_version).package
        ask, urgency = ask_of(call, package.manifest), urgency_of(call.parameters)
        if remaining is not None:
            urgency = replace(urgency, timeout=min(urgency.timeout, remaining))
        head = {"model_name": name_of(package), "model_version": version_of(package), "id": request.id}
        async with contextlib.aclosing(self._plane.stream(package.digest, ask, arrived, urgency)) as items:
            async for item in items:
                if isinstance(item, Inference):
                    yield self._last(response_of(self._messages, head, answer_of(call, item)))
                else:
                    yield self._streamed(response_of(self._messages, head, [_text(item)]), final=False)

    def _last(self, response: Any) -> Any:
        return self._streamed(response, final=True)

    def _streamed(self, response: Any, *, final: bool) -> Any:
        response.parameters["triton_final_response"].bool_param = final
        return self._messages["inference.ModelStreamInferResponse"](infer_response=response)

    def _failed(self, request: Any, error: MlosError) -> Any:
        response = self._messages["inference.ModelInferResponse"](model_name=request.model_name, id=request.id)
        failed = self._last(response)
        failed.error_message = text_of(error)
        return failed


class Health:
    """The service ``grpc.health.v1.Health``, of the server as a whole or of its inference service."""

    def __init__(self, plane: DataPlane, messages: Messages) -> None:
        self._plane, self._answer = plane, messages["grpc.health.v1.HealthCheckResponse"]

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802  # the protocol's name
        """Whether requests should come."""
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:100]!r}")
        return self._answer(status=status)

    async def Watch(self, request: Any, context: Context) -> AsyncGenerator[Any, None]:  # noqa: N802
        """The same whenever it changes, until the server is about to end."""
        told: str | None = None
        while True:
            status = self._status(request.service) or "SERVICE_UNKNOWN"
            if status != told:
                told = status
                yield self._answer(status=status)
            if self._plane.draining:
                return
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self, service: str) -> str | None:
        if service not in ("", INFERENCE, HEALTH):
            return None
        return "SERVING" if self._plane.unready() is None else "NOT_SERVING"


def authorization_of(context: Context) -> str:
    """What a call brings as its ``authorization``."""
    value = dict(context.invocation_metadata() or ()).get("authorization", "")
    return value if isinstance(value, str) else ""


def _text(part: Part) -> Tensor:
    return Tensor("text", BYTES, [1], strings_to_raw([part.text.encode()]))
