"""What operators and their machines ask: health, readiness, metrics, version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos import __version__
from mlos.core.dataplane import DataPlane
from mlos.core.http.errors import JSON
from mlos.core.metrics import CONTENT_TYPE
from mlos.core.replica import Replica


class Operation:
    """The routes of this surface."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    @property
    def open_routes(self) -> Sequence[BaseRoute]:
        """What whoever watches over the server asks, and no token is needed for."""
        return [
            Route("/health", self.health, methods=["GET"]),
            Route("/v2/health/live", self.live, methods=["GET"]),
            Route("/v2/health/ready", self.ready, methods=["GET"]),
        ]

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """The others, which tell what is served."""
        return [
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/version", self.version, methods=["GET"]),
        ]

    async def health(self, request: Request) -> Response:
        """The server in one look; 200 as long as it can say so."""
        reason = self._plane.unready()
        states = Counter(replica.state for replica in self._plane.supervisor.models())
        return _json({"live": True, "ready": reason is None, "reason": reason, "models": states})

    async def live(self, request: Request) -> Response:
        """That this is answered says that the event loop turns."""
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """200 if requests should come, else 503 with the reason."""
        reason = self._plane.unready()
        return _json({"ready": reason is None, "reason": reason}, 200 if reason is None else 503)

    async def metrics(self, request: Request) -> Response:
        """All metrics in Prometheus's text format."""
        return Response(self._plane.metrics.exposition(), media_type=CONTENT_TYPE)

    async def version(self, request: Request) -> Response:
        """Which MLOS this is, and what each model that has been loaded is served with, and why."""
        supervisor = self._plane.supervisor
        loaded = [replica for replica in supervisor.models() if replica.served_as is not None]
        return _json(
            {
                "name": "mlos",
                "version": __version__,
                "precision": supervisor.precision,
                "models": [_served(replica) for replica in loaded],
            }
        )


def _served(replica: Replica) -> dict[str, Any]:
    served, report = replica.served_as, replica.report
    assert served is not None
    candidate, batching = served.choice.candidate, served.choice.batching
    return {
        "model": replica.package.name,
        "digest": candidate.digest,
        "engine": candidate.engine,
        "engine_version": report.engine_version if report is not None else None,
        "precision": candidate.precision,
        "threads": candidate.threads,
        "streams": candidate.streams,
        "batch": batching.most if batching is not None else 1,
        "chosen": served.choice.reason,
    }


def _json(data: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(data), status, None, JSON)
