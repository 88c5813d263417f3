"""A hub on loopback: a real HTTP server that speaks the hub's API, and fails in every way a test asks for.

Two origins: the hub (API, small files) and the "CDN" that it redirects large files to, under another host name.
Each keeps the requests it saw. A :class:`Fault` changes the answers to requests whose path contains ``match``.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".onnx", ".gguf", ".bin", ".onnx_data")

FaultKind = Literal[
    "status",  # answer with a status and headers
    "html",  # a login page with status 200
    "cut",  # announce everything, send `at` bytes, close the connection
    "short",  # announce and send only `at` bytes of what was asked for
    "longer",  # announce and send more than there is
    "stall",  # send `at` bytes, then nothing until the server stops
    "flip",  # flip one bit of the byte at `at`
    "content",  # serve `body` instead
    "no-range",  # answer 200 with everything to a range request
    "redirect",  # send elsewhere: `location`
]


@dataclass
class Fault:
    """What goes wrong, for whom, and how often (None: always)."""

    kind: FaultKind
    match: str
    times: int | None = None
    at: int = 0
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    location: str = ""


@dataclass
class Repository:
    """One repository at one commit."""

    files: dict[str, bytes]
    card: dict[str, Any] = field(default_factory=dict)
    gated: str | bool = False
    token: str | None = None
    """The token that may read its files; None: anybody."""
    revisions: tuple[str, ...] = ("main", "v1.0")
    gguf: dict[str, Any] | None = None
    """What the hub says of its GGUF files."""

    @property
    def commit(self) -> str:
        state = "".join(f"{path}{git_sha1(body)}" for path, body in sorted(self.files.items()))
        return hashlib.sha1(state.encode()).hexdigest()


@dataclass(frozen=True)
class Seen:
    """One request as it arrived, ``at`` seconds of the monotonic clock."""

    origin: str
    method: str
    path: str
    headers: dict[str, str]
    at: float


class HubServer:
    """The two servers and what they hold."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.accounts: dict[str, str] = {}
        """Names by token. Where there are any, a token that is not among them is refused, as the hub does."""
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._servers = [_Server(self, origin) for origin in ("hub", "cdn")]
        self.url = f"http://127.0.0.1:{self._servers[0].server_address[1]}"
        self.cdn_url = f"http://localhost:{self._servers[1].server_address[1]}"

    def fail(self, kind: FaultKind, match: str, **details: Any) -> None:
        """Have answers to paths that contain ``match`` go wrong."""
        self.faults.append(Fault(kind, match, **details))

    def fault_for(self, path: str) -> Fault | None:
        """The first fault that applies; it is used up once more."""
        with self._lock:
            for fault in self.faults:
                if fault.match in path and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def requests(self, part: str, origin: str | None = None) -> list[Seen]:
        """What was asked for with ``part`` in its path."""
        with self._lock:
            return [seen for seen in self.seen if part in seen.path and origin in (None, seen.origin)]

    def record(self, seen: Seen) -> None:
        """Keep a request."""
        with self._lock:
            self.seen.append(seen)

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        """Serve until the block ends."""
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,)) for server in self._servers]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            for server in self._servers:
                server.shutdown()
                server.server_close()
            for thread in threads:
                thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubServer, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.origin = origin

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or gave up, is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, origin = self.server.hub, self.server.origin
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.record(Seen(origin, self.command, self.path, headers, time.monotonic()))
        path = unquote(urlsplit(self.path).path)
        fault = hub.fault_for(f"{origin}:{path}")
        match fault and fault.kind:
            case "status":
                assert fault is not None
                self._send(
                    fault.status, fault.body or b"{}", {"Content-Type": "application/json", **fault.headers}
                )
            case "html":
                self._send(
                    200,
                    b"<!DOCTYPE html><title>Log in</title>" * 9,
                    {"Content-Type": "text/html; charset=utf-8"},
                )
            case "redirect":
                assert fault is not None
                self._send(302, b"", {"Location": fault.location})
            case _ if origin == "cdn":
                self._cdn(path, fault)
            case _ if path == "/api/whoami-v2":
                self._whoami()
            case _ if hub.accounts and self._token() not in (None, *hub.accounts):
                self._error(401, None, "Invalid credentials in Authorization header")
            case _ if path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            case _:
                self._resolve(path.removeprefix("/"), fault)

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _whoami(self) -> None:
        name = self.server.hub.accounts.get(self._token() or "")
        if name is None:
            self._error(401, None, "Invalid credentials in Authorization header")
            return
        answer = {"type": "user", "name": name, "auth": {"type": "access_token"}}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _api(self, rest: str) -> None:
        name, _, revision = rest.partition("/revision/")
        hub = self.server.hub
        if name in hub.renamed:
            query = urlsplit(self.path).query
            self._send(307, b"", {"Location": f"/api/models/{hub.renamed[name]}?{query}"})
            return
        repository = hub.repositories.get(name)
        if repository is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return
        if revision and revision not in (*repository.revisions, repository.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        info = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": False,
            "gated": repository.gated,
            "tags": ["transformers"],
            "cardData": repository.card,
            "gguf": repository.gguf,
            "siblings": [_sibling(path, body, blobs) for path, body in sorted(repository.files.items())],
        }
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _resolve(self, rest: str, fault: Fault | None) -> None:
        name, _, tail = rest.partition("/resolve/")
        repository = self.server.hub.repositories.get(name)
        revision, _, path = tail.partition("/")
        if repository is None:
            self._error(404, "RepoNotFound", "Repository not found")
            return
        if repository.token is not None and self._token() != repository.token:
            status, code = (403, "GatedRepo") if self._token() else (401, "GatedRepo")
            self._error(status, code, f"Access to model {name} is restricted.")
            return
        if revision not in (*repository.revisions, repository.commit):
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if path not in repository.files:
            self._error(404, "EntryNotFound", "Entry not found")
            return
        body = repository.files[path]
        common = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if path.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(body).hexdigest()
            location = f"{self.server.hub.cdn_url}/{quote(name)}/{digest}/{quote(path)}?Signature=s&Expires=1"
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(body)), "Location": location}
            self._send(302, b"", {**common, **linked})
            return
        self._file(body, {**common, "ETag": f'"{git_sha1(body)}"', "Content-Type": "text/plain"}, fault)

    def _cdn(self, path: str, fault: Fault | None) -> None:
        for name, repository in self.server.hub.repositories.items():
            for file, body in repository.files.items():
                digest = hashlib.sha256(body).hexdigest()
                if path == f"/{name}/{digest}/{file}":
                    kind = {"Content-Type": "binary/octet-stream", "ETag": f'"{digest[:32]}"'}
                    self._file(body, kind, fault)
                    return
        self._send(403, b"<Error><Code>AccessDenied</Code></Error>", {"Content-Type": "application/xml"})

    def _file(self, body: bytes, headers: dict[str, str], fault: Fault | None) -> None:
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        if kind == "content" and fault:
            body = fault.body
        if kind == "flip":
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        if kind == "longer":
            body += b"\0" * 4096
        wanted = self.headers.get("Range", "")
        status, start = 200, 0
        if wanted.startswith("bytes=") and kind != "no-range":
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(body):
                self._send(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        body = body[start:]
        if kind == "short":
            body = body[:at]
        if kind in ("cut", "stall"):
            self._send(status, body[:at], headers, announce=len(body))
            if kind == "stall":
                self.server.hub.stopping.wait(60)
            self.close_connection = True
            return
        self._send(status, body, headers)

    def _error(self, status: int, code: str | None, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code is not None:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str], announce: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if announce is None else announce))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()


def git_sha1(body: bytes) -> str:
    """Git's blob hash of a content."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _sibling(path: str, body: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "size": len(body), "blobId": git_sha1(body)}
    if path.endswith(LFS_SUFFIXES):
        digest = hashlib.sha256(body).hexdigest()
        sibling["lfs"] = {"size": len(body), "sha256": digest, "pointerSize": 134}
    return sibling
