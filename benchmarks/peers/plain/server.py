"""The floor: starlette, uvicorn and a pool of threads around ONNX Runtime; no framework of serving at all."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import orjson
import uvicorn
from model_file import HEADER, ModelFile, answer_of, raw_answer_of, tensors_of_body
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

MODEL = ModelFile()
POOL = ThreadPoolExecutor(2)  # one computes while the other's answer is written


def _infer(body: bytes, header: str | None) -> tuple[bytes, str | None]:
    outputs = MODEL.run(tensors_of_body(body, header, orjson.loads))
    if header is not None:
        return raw_answer_of(outputs, orjson.dumps)
    return orjson.dumps(answer_of(outputs, lists=False), option=orjson.OPT_SERIALIZE_NUMPY), None


def _embed(body: bytes) -> bytes:
    embedding = MODEL.embed([orjson.loads(body)["text"]])[0]
    return orjson.dumps({"embedding": embedding}, option=orjson.OPT_SERIALIZE_NUMPY)


async def infer(request: Request) -> Response:
    """Tensors, as JSON or as bytes."""
    body, loop = await request.body(), asyncio.get_running_loop()
    content, length = await loop.run_in_executor(POOL, _infer, body, request.headers.get(HEADER))
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER: length}, media_type="application/octet-stream")


async def text(request: Request) -> Response:
    """A text to its embedding."""
    body, loop = await request.body(), asyncio.get_running_loop()
    return Response(await loop.run_in_executor(POOL, _embed, body), media_type="application/json")


async def ready(request: Request) -> Response:
    """The model is loaded before the port is open."""
    return Response()


APP = Starlette(
    routes=[
        Route("/infer", infer, methods=["POST"]),
        Route("/text", text, methods=["POST"]),
        Route("/ready", ready),
    ]
)

if __name__ == "__main__":
    uvicorn.run(APP, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")
