"""Routes that need a right: what stands between an address that was routed and what answers it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mlos.core.access import Gate, Right


class Guard:
    """Lets requests through that have the right, and notes in their state whether they may administer."""

    def __init__(self, app: ASGIApp, gate: Gate, right: Right) -> None:
        self._app, self._gate, self._right = app, gate, right

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        rights = self._gate.check(self._right, Headers(scope=scope).get("authorization", ""))
        scope["state"]["administrator"] = Right.ADMINISTRATION in rights
        await self._app(scope, receive, send)


def guarded(right: Right, gate: Gate, routes: Sequence[BaseRoute]) -> list[Route]:
    """The same routes for those who have the right."""
    found = []
    for route in routes:
        assert isinstance(route, Route)
        methods = sorted((route.methods or set()) - {"HEAD"})
        middleware = [Middleware(Guard, gate, right)]
        found.append(Route(route.path, route.endpoint, methods=methods, middleware=middleware))
    return found
