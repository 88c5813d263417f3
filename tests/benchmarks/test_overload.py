"""Arrivals that wait for nobody: refusals are counted, answers checked, failures end the run."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.arrivals import arrive
from benchmarks.client import http_request
from benchmarks.sides import Mlos, Peer, Served, Side
from benchmarks.wire import Asked
from benchmarks.workloads import WORKLOADS, package_of
from tests.benchmarks.test_comparing import NO_PACKAGE

from benchmarks import overload
from mlos.errors import ParityError, UnavailableError

TRIVIAL = WORKLOADS["trivial"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


class Running:
    """Our server, which is up already."""

    name, title, ours = "mlos", "mlos_core", True
    configuration: tuple[str, ...] = ()
    speaks = Mlos.speaks

    def __init__(self, served: Served) -> None:
        self._served = served

    def prepare(self) -> str:
        return ""

    def serving(self, package: Any, settings: Any) -> Any:
        return contextlib.nullcontext(self._served)


@pytest.fixture(scope="module")
def running(home: None) -> Iterator[Side]:
    with Mlos("mlos").serving(package_of(TRIVIAL), {}) as served:
        yield Running(served)


def other_right_answers(change: Callable[[Asked], Asked], patch: pytest.MonkeyPatch, room: Any) -> None:
    drawn = room.requests_of
    patch.setattr(room, "requests_of", lambda *given: [change(one) for one in drawn(*given)])


def wrong(one: Asked) -> Asked:
    return Asked(one.tensors, {name: array + 1 for name, array in one.outputs.items()})


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
    other_right_answers(wrong, monkeypatch, overload)
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
