"""Ray Serve: one deployment of one replica on a node of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading

import ray
from model_file import HEADER, ModelFile, answer_of, raw_answer_of, tensors_of_body
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


def _dumps(value: object) -> bytes:
    return json.dumps(value).encode()


@serve.deployment(num_replicas=1, max_ongoing_requests=32, ray_actor_options={"num_cpus": 1})
class Served:
    """The package's file, in a replica."""

    def __init__(self) -> None:
        self._file = ModelFile()

    async def __call__(self, request: Request) -> Response:
        """Tensors as JSON or as bytes, or a text."""
        if request.method == "GET":
            return Response()
        body, header = await request.body(), request.headers.get(HEADER)
        if request.url.path == "/text":
            return JSONResponse({"embedding": self._file.embed([json.loads(body)["text"]])[0].tolist()})
        outputs = self._file.run(tensors_of_body(body, header, json.loads))
        if header is None:
            return JSONResponse(answer_of(outputs))
        content, length = raw_answer_of(outputs, _dumps)
        return Response(content, headers={HEADER: length}, media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 * 2**20,
        runtime_env={
            "env_vars": {name: os.environ[name] for name in ("MLOS_BENCH", "PYTHONPATH")},
        },
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Served.bind(), route_prefix="/")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
