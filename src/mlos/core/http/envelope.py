"""What every request is wrapped in: an id, a line in the log, and an answer even where our own code failed."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlos.core.http.errors import answer_error
from mlos.core.log import fields
from mlos.errors import MlosError

_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")

_log = logging.getLogger(__name__)


def request_id_of(proposed: str) -> str:
    """A request's id: what the client proposes if it is a sane one, else a new one."""
    return proposed if _SANE_ID.fullmatch(proposed) else uuid.uuid4().hex


class Envelope:
    """Gives a request its id, the client's own if it is a sane one, and logs how it was answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        proposed = Headers(scope=scope).get("x-request-id", "")
        request_id = request_id_of(proposed)
        state = scope.setdefault("state", {})
        state["request_id"], state["arrived"] = request_id, started
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:  # logged with its place; the client gets a 500 and the server goes on
            _log.exception("a request met a bug", extra=fields(request_id=request_id))
            if status:
                raise  # too late for an answer: the connection has to be cut
            error = MlosError("the server met a bug; its log has the request id")
            await answer_error(error, request_id, scope["path"])(scope, receive, answer)
        finally:
            level = logging.INFO if scope["method"] == "POST" or status >= 400 else logging.DEBUG
            if _log.isEnabledFor(level):
                _log.log(
                    level,
                    "request",
                    extra=fields(
                        request_id=request_id,
                        method=scope["method"],
                        path=scope["path"][:200],
                        status=status,
                        milliseconds=round(1e3 * (time.monotonic() - started), 2),
                    ),
                )
