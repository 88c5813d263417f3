"""A server on loopback that speaks as much of V1 as a load client hears: answers, and streams of parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any]], tuple[int, bytes]]


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


def generated(text: str, prompt_tokens: int = 3, completion_tokens: int = 2) -> bytes:
    """A V1 answer of a model that generates."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return answer(task="chat", result={"text": text, "finish_reason": "length", "usage": usage})


def events(*pairs: tuple[str, bytes]) -> list[bytes]:
    """Events by name and data, each as it crosses the wire."""
    return [b"event: " + name.encode() + b"\ndata: " + data + b"\n\n" for name, data in pairs]


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers by ``reply``; gives its address, and what it was asked."""

    def respond(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        status, content = reply(body)
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Server-Timing", "read;dur=0.25, total;dur=9, compute;dur=2.0")
        handler.end_headers()
        handler.wfile.write(content)

    with _listening(respond) as found:
        yield found


@contextmanager
def streaming(chunks: Sequence[bytes]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers every request with ``chunks``, one write each."""

    def respond(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in (*chunks, b""):
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))

    with _listening(respond) as found:
        yield found


@contextmanager
def _listening(
    respond: Callable[[BaseHTTPRequestHandler, dict[str, Any]], None],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            respond(self, body)

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
