"""A server that doubles its numbers over V2, in the ways that its second argument says; a program apart."""

from __future__ import annotations

import http.server
import json
import os
import signal
import sys
import time

_ANSWERED = 0
RIGHT_BEFORE = 12


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(200, {})

    def do_POST(self) -> None:
        global _ANSWERED
        _ANSWERED += 1
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tensor = asked["inputs"][0]
        way = sys.argv[2]
        factor = 2.01 if way == "wrong" or (way == "later" and _ANSWERED > RIGHT_BEFORE) else 2
        if way == "refuses":
            self._answer(500, {"error": "not today"})
        elif way == "cuts":
            self.close_connection = True
        else:
            answer = {**tensor, "name": "y", "data": [factor * each for each in tensor["data"]]}
            self._answer(200, {"outputs": [answer]})

    def _answer(self, status: int, said: object) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    if sys.argv[2] == "leaves":
        sys.stdout.write("no licence found\n")
        sys.exit(3)
    if sys.argv[2] == "orphan" and (child := os.fork()) == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.setsid()
        time.sleep(120)
        os._exit(0)
    if sys.argv[2] == "orphan":
        with open(os.environ["CHILD"], "w") as file:  # noqa: PTH123
            file.write(str(child))
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
