"""The HTTP surfaces: thin shells over the data plane, each in its protocol's own dress."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from mlos.core.access import Gate, Right
from mlos.core.dataplane import DataPlane
from mlos.core.http.administration import Administration
from mlos.core.http.envelope import Envelope
from mlos.core.http.errors import answer_http_error, answer_mlos_error
from mlos.core.http.generate import Generate
from mlos.core.http.guard import guarded
from mlos.core.http.openai import OpenAI
from mlos.core.http.openapi import OpenApi
from mlos.core.http.operation import Operation
from mlos.core.http.v1 import V1
from mlos.core.http.v2 import V2
from mlos.errors import MlosError


def application(plane: DataPlane, gate: Gate, *, max_body_bytes: int, read_timeout: float) -> Starlette:
    """All surfaces over one data plane, behind one gate; what watches over a server needs no token."""
    operation, v2 = Operation(plane), V2(plane, max_body_bytes=max_body_bytes, read_timeout=read_timeout)
    asked = [
        surface(plane, max_body_bytes=max_body_bytes, read_timeout=read_timeout)
        for surface in (V1, OpenAI, Generate)
    ]
    return Starlette(
        routes=[
            *operation.open_routes,
            *OpenApi().routes,
            *guarded(Right.ADMINISTRATION, gate, [*Administration(plane).routes, *v2.routes_of_administration]),
            *guarded(
                Right.INFERENCE,
                gate,
                [*operation.routes, *(route for surface in asked for route in surface.routes), *v2.routes],
            ),
        ],
        middleware=[Middleware(Envelope)],
        exception_handlers={MlosError: answer_mlos_error, HTTPException: answer_http_error},
    )
