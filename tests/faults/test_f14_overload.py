"""F14: what is too much is turned away at once, with a time to come back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import slowly

from mlos.store import Store


def test_overload_is_turned_away_at_once_with_a_time_to_come_back(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start("--max-queue", "2")
    for _ in range(2):
        assert server.infer("slow", slowly(100)).status == 200
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.infer("slow", slowly(100)), range(12)))
    full = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} == {200, 503}
    assert len(full) >= 6
    assert all("full" in answer.error["message"] and int(answer.headers["retry-after"]) >= 1 for answer in full)
