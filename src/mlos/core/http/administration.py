"""Administration: models loaded, unloaded and replaced by who may, on the Unix socket or with a token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos.core.dataplane import CLIENT_LEFT, DataPlane
from mlos.core.http.errors import JSON
from mlos.core.http.events import unless_left
from mlos.core.http.v1 import row
from mlos.core.replica import Replica


class Administration:
    """The routes of this surface; a model's name may be a full reference, slashes and all."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where they are."""
        return [
            Route("/admin/models/{name:path}/load", self.load, methods=["POST"]),
            Route("/admin/models/{name:path}/unload", self.unload, methods=["POST"]),
            Route("/admin/models/{name:path}/reload", self.reload, methods=["POST"]),
        ]

    async def load(self, request: Request) -> Response:
        """Load a model now, and take it back into service if it was unloaded; its row once it is ready."""
        return await _done(request, self._plane.supervisor.load)

    async def unload(self, request: Request) -> Response:
        """Take a model out of service; its row once what was accepted is answered and its worker has ended."""
        return await _done(request, self._plane.supervisor.unload)

    async def reload(self, request: Request) -> Response:
        """Put a new worker in the place of a model's present one; its row once the new one is ready."""
        return await _done(request, self._plane.supervisor.reload)


async def _done(request: Request, verb: Callable[[str], Awaitable[Replica]]) -> Response:
    try:
        replica = await unless_left(request.receive, verb(request.path_params["name"]))
    except ClientDisconnect:
        return Response(status_code=CLIENT_LEFT)
    return Response(msgspec.json.encode(row(replica)), 200, None, JSON)
