"""A server on loopback that speaks as much of V1 as a load client hears: answers, and streams of parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, bytes | Sequence[bytes]]]
"""From a request's body to a status and an answer, or an event stream in as many writes as there are pieces."""


def answer(**changes: Any) -> bytes:
    """A V1 answer; a change to None leaves the field out."""
    whole = {
        "digest": "ab",
        "task": "embeddings",
        "result": {"embedding": [0.5], "dimensions": 1},
        "engine": "onnxruntime",
        "precision": "fp32",
        "mode": "userspace",
        "timings_ms": {"queue": 0.5, "compute": 2.0},
    }
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None}).encode()


def generated(text: str, **changes: Any) -> bytes:
    """A V1 answer of a model that generates."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    result = {"text": text, "finish_reason": "length", "usage": usage}
    return answer(**({"task": "chat", "result": result} | changes))


def events(*pairs: tuple[str, bytes]) -> list[bytes]:
    """Events by name and data, each as it crosses the wire."""
    return [b"event: " + name.encode() + b"\ndata: " + data + b"\n\n" for name, data in pairs]


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers by ``reply``; gives its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            status, content = reply(body)
            self.send_response(status)
            self.send_header("Server-Timing", "read;dur=0.25, total;dur=9, compute;dur=2.0")
            if isinstance(content, bytes):
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (*content, b""):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
