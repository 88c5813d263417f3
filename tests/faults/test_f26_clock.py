"""F26: deadlines are on the monotonic clock: a clock that jumps a day to and fro changes no answer."""

from __future__ import annotations

from pathlib import Path

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import administer, slowly

from mlos.store import Store

JUMPY = """
import itertools
import time

jumps, real = itertools.cycle((0, 86400, -86400)), time.time
time.time = lambda: real() + next(jumps)
time.time_ns = lambda: int(1e9 * time.time())
"""


def test_a_clock_that_jumps_changes_no_deadline(start: Start, store: Store, home: Path) -> None:
    packages.slow(store)
    (home / "modules").mkdir()
    (home / "modules" / "sitecustomize.py").write_text(JUMPY)
    server = start("--request-timeout", "5")
    assert administer(server, "load", "slow").status == 200
    for _ in range(5):
        assert server.infer("slow", slowly(5)).status == 200
    answer = server.infer("slow", slowly(20_000))
    assert (answer.status, answer.error["code"]) == (504, "deadline")
    # What the jumps do reach is the log's clock, which shows that they happen.
    moments = {line["time"][:10] for line in server.lines()}
    assert len(moments) > 1
