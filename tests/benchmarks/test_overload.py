"""Arrivals that wait for nobody: refusals are counted, answers checked, failures end the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.arrivals import arrive
from benchmarks.client import http_request
from benchmarks.sides import Peer, Side
from benchmarks.workloads import requests_of
from tests.benchmarks.running import TRIVIAL, home, running, wrong
from tests.benchmarks.test_comparing import NO_PACKAGE

from benchmarks import overload
from mlos.errors import ParityError, UnavailableError

__all__ = ["home", "running"]


def crowd(side: Side, samples: int = 40) -> dict[str, Any]:
    return overload.overload(side, TRIVIAL, 2, 3.0, samples, 0.2, 0, lambda said: None)


def test_a_crowd_is_counted_and_its_answers_are_checked(running: Side) -> None:
    found = crowd(running)
    assert found["checked"] > 0
    rows = [row for blocks in found["blocks"].values() for row in blocks]
    assert len(rows) == 8
    assert all(row["accepted"] >= 40 and row["p50_ms"] <= row["p99_ms"] for row in rows)
    lines = overload.lines_of(found)
    assert "refused" in lines["overload"]
    assert "no claim: a p99 needs 662" in lines["overload / capacity"]
    json.dumps(found)


def test_a_wrong_answer_in_a_crowd_ends_the_run(running: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = requests_of
    monkeypatch.setattr(overload, "requests_of", lambda *given: [wrong(one) for one in drawn(*given)])
    with pytest.raises(ParityError, match="is wrong"):
        crowd(running)


STATUS = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = 0
    def log_message(self, *_): pass
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        Handler.asked += 1
        self.send_response(200 if Handler.asked % 2 else int(sys.argv[2]))
        self.send_header("Content-Length", "0"); self.end_headers()
    do_GET = lambda self: (self.send_response(200), self.send_header("Content-Length", "0"), self.end_headers())
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.parametrize("status", [503, 429, 500])
def test_a_refusal_is_counted_and_has_no_latency_and_another_error_ends_the_run(
    tmp_path: Path, status: int
) -> None:

    (tmp_path / "server.py").write_text(STATUS)
    (tmp_path / "peer.toml").write_text(f"""
        title = "refuses every other"
        command = ["{{python}}", "{{folder}}/server.py", "{{port}}", "{status}"]
        ready = "/"
        configuration = ["x"]
        wires = {{ json = {{ form = "v2-json", path = "/" }} }}
    """)
    request = http_request("/", "application/json", b"{}", {})
    with Peer("refuses", tmp_path, Path(sys.executable)).serving(NO_PACKAGE, {}) as served:
        if status == 500:
            with pytest.raises(UnavailableError, match="answered with status 500"):
                arrive(served.port, [request], 200.0, 20, 0)
            return
        found = arrive(served.port, [request], 200.0, 20, 0)
    assert len(found.latencies) >= 20
    assert found.refused >= 15
    assert len(found.late) == len(found.latencies) + found.refused
