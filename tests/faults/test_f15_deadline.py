"""F15: a deadline is kept, queued or running; in a stream, ``tests/core/test_stream.py`` holds it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import administer, slowly

from mlos.store import Store


def test_a_deadline_is_kept_queued_or_running_and_expired_work_is_never_started(
    start: Start, store: Store
) -> None:
    packages.slow(store)
    server = start("--request-timeout", "3")
    assert administer(server, "load", "slow").status == 200
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: server.infer("slow", slowly(n)), (4000, 4000, 4000)))
    assert [answer.status for answer in answers] == [504] * 3
    where = sorted("queue" in answer.error["message"] for answer in answers)
    assert where == [False, True, True]
    # Two never started: the worker is soon free again, or was ended for overrunning.
    server.wait_for(lambda: server.infer("slow", slowly(1)).status == 200)
    assert server.metric("mlos_stage_seconds_count", model="slow", stage="compute") == 1
