"""The OpenAPI document of what is served over HTTP, made of the very types that requests are decoded into.

Reference: https://spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from mlos import __version__
from mlos.core.http.answers import ANSWERS, FLAT_ERROR, PLAIN_ERROR
from mlos.core.http.embeddings import EmbeddingsRequest
from mlos.core.http.errors import JSON
from mlos.core.http.v2 import HEADER, IndexRequest, InferRequest, LoadRequest
from mlos.core.http.writing import ChatRequest, CompletionRequest
from mlos.model import InferenceRequest

_BODIES = (
    *(InferenceRequest, InferRequest, IndexRequest, LoadRequest),
    *(ChatRequest, CompletionRequest, EmbeddingsRequest),
)
_EVENTS, _BYTES, _FORM, _TEXT = (
    *("text/event-stream", "application/octet-stream", "multipart/form-data", "text/plain"),
)
_MODEL = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
_PARAMETERS = {
    "name": "A model: its short name, its repository's name or its full reference, slashes and all.",
    "version": "A model's version: the beginning of its package's digest.",
}


def document() -> dict[str, Any]:
    """The whole document."""
    _, schemas = msgspec.json.schema_components(_BODIES, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "MLOS",
            "version": __version__,
            "summary": "Models asked by MLOS V1, the Open Inference Protocol V2 or OpenAI's protocol",
            "description": "Where the server has tokens, requests bring one as `Authorization: Bearer TOKEN`; "
            "health, readiness and this document need none. Administration is answered on the server's Unix "
            "socket, or with the token of administration.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "paths": _paths(),
        "components": {"schemas": {**schemas, **ANSWERS}},
    }


class OpenApi:
    """The route of this document."""

    def __init__(self) -> None:
        self._content = msgspec.json.encode(document())

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """Where it is."""
        return [Route("/openapi.json", self.document, methods=["GET"])]

    async def document(self, request: Request) -> Response:
        """It as JSON."""
        return Response(self._content, 200, None, JSON)


def _paths() -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {
        "/health": {"get": _get("health", "The server in one look", "Health")},
        "/v2/health/live": {"get": _get("live", "Whether the server turns", "Live", flat=True)},
        "/v2/health/ready": {
            "get": _get("ready", "Whether requests should come", "Ready", flat=True, also=("503", "Ready"))
        },
        "/metrics": {"get": _get("metrics", "Metrics in Prometheus's text format", None)},
        "/version": {"get": _get("version", "Which MLOS this is", "Version")},
        "/openapi.json": {"get": _get("openapi", "This document", "Document")},
        "/v1/models": {"get": _get("models", "Every model with its state", "Models")},
        "/v1/models/{name}": {"get": _get("model", "One model of the list", "Model")},
        "/v1/models/{name}/inference": {
            "post": _post(
                "inference",
                "Ask a model with what a person has",
                "InferenceRequest",
                {JSON: "Inference", _EVENTS: None},
                takes=(_FORM,),
            )
        },
        "/v1/chat/completions": {
            "post": _post(
                "chat", "The next turn of a conversation", "ChatRequest", {JSON: "Chat", _EVENTS: None}
            )
        },
        "/v1/completions": {
            "post": _post(
                "completions", "A prompt, continued", "CompletionRequest", {JSON: "Completion", _EVENTS: None}
            )
        },
        "/v1/embeddings": {
            "post": _post("embeddings", "Vectors of texts", "EmbeddingsRequest", {JSON: "Embeddings"})
        },
        "/v2": {"get": _get("server", "The server's metadata", "Server", flat=True)},
        "/v2/models/stats": {
            "get": _get("all_statistics", "Statistics of all models", "Statistics", flat=True)
        },
        "/v2/repository/index": {
            "post": _post(
                "index",
                "Every model with its state",
                "IndexRequest",
                {JSON: "Index"},
                flat=True,
                needed=False,
            )
        },
        "/v2/repository/models/{name}/load": {
            "post": _post("load", "Load a model now", "LoadRequest", {JSON: "Nothing"}, flat=True, needed=False)
        },
        "/v2/repository/models/{name}/unload": {
            "post": _post(
                "unload",
                "Take a model out of service; administration",
                "Nothing",
                {JSON: "Nothing"},
                flat=True,
                needed=False,
            )
        },
        "/admin/models/{name}/load": {"post": _post("admin_load", "Load a model now", None, {JSON: "Model"})},
        "/admin/models/{name}/unload": {
            "post": _post("admin_unload", "Take a model out of service", None, {JSON: "Model"})
        },
        "/admin/models/{name}/reload": {
            "post": _post("admin_reload", "Put a new worker in the present one's place", None, {JSON: "Model"})
        },
    }
    for path in _MODEL:
        suffix = "_of_version" if "version" in path else ""
        told = (
            ("", "metadata", "A model's tensors", "Metadata"),
            ("/config", "config", "A model's configuration", "Config"),
            ("/stats", "statistics", "A model's statistics", "Statistics"),
        )
        for end, name, summary, schema in told:
            paths[path + end] = {"get": _get(name + suffix, summary, schema, flat=True)}
        ready = _get(
            "model_ready" + suffix, "Whether it takes requests", "Ready", flat=True, also=("503", "Ready")
        )
        paths[f"{path}/ready"] = {"get": ready}
        infer = _post(
            "infer" + suffix,
            "Ask a model with tensors, or with texts, images or sounds as BYTES",
            "InferRequest",
            {JSON: "Inferred", _BYTES: None},
            flat=True,
            takes=(_BYTES,),
        )
        infer["parameters"] = [
            {
                "name": HEADER,
                "in": "header",
                "description": "How many bytes of the body are JSON, where raw tensors follow it",
                "schema": {"type": "integer", "minimum": 0},
            }
        ]
        paths[f"{path}/infer"] = {"post": infer}
        for end, types in (("generate", {JSON: "Generated"}), ("generate_stream", {_EVENTS: None})):
            post = _post(end + suffix, "A text, continued or answered", "GenerateRequest", types, flat=True)
            paths[f"{path}/{end}"] = {"post": post}
    for path, item in paths.items():
        named = [name for name in _PARAMETERS if f"{{{name}}}" in path]
        if named:
            item["parameters"] = [_in_path(name) for name in named]
    return paths


def _in_path(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": _PARAMETERS[name],
        "schema": {"type": "string", "minLength": 1},
    }


def _get(
    name: str, summary: str, schema: str | None, *, flat: bool = False, also: tuple[str, str] | None = None
) -> dict[str, Any]:
    responses = _responses({_TEXT: None} if schema is None else {JSON: schema}, flat=flat)
    if also is not None:
        status, other = also
        responses[status] = {"description": "Not now", "content": {JSON: {"schema": _ref(other)}}}
    return {"operationId": name, "summary": summary, "responses": responses}


def _post(
    name: str,
    summary: str,
    schema: str | None,
    answers: Mapping[str, str | None],
    *,
    flat: bool = False,
    takes: Sequence[str] = (),
    needed: bool = True,
) -> dict[str, Any]:
    told = {"operationId": name, "summary": summary, "responses": _responses(answers, flat=flat)}
    if schema is None:
        return told
    content: dict[str, Any] = {JSON: {"schema": _ref(schema)}}
    content |= {kind: {"schema": {"type": "object"}} if kind == _FORM else {} for kind in takes}
    return {**told, "requestBody": {"required": needed, "content": content}}


def _responses(answers: Mapping[str, str | None], *, flat: bool) -> dict[str, Any]:
    error = {"content": {JSON: {"schema": _ref(FLAT_ERROR if flat else PLAIN_ERROR)}}}
    responses: dict[str, Any] = {
        "4XX": {"description": "The request cannot be answered as it is; the error says why", **error},
        "5XX": {"description": "The server or the model failed; the error says why", **error},
    }
    if answers:
        content = {kind: {} if name is None else {"schema": _ref(name)} for kind, name in answers.items()}
        responses["200"] = {"description": "The answer", "content": content}
    return responses


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
