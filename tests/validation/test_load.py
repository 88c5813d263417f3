from __future__ import annotations

import time
from typing import Any

from tests.validation.v1_server import answer, events, generated, serving

from mlos.validation import load
from mlos.validation.load import Query
from mlos.validation.tiers import Length

GOLDEN: list[dict[str, Any]] = [
    {"text": "one two three four"},
    {"texts": ["five six", "seven"]},
    {"text": "eight"},
]
QUERIES = [Query(request) for request in GOLDEN]
BRIEF = Length(timed_seconds=0.2, samples=0, window_seconds=0.02, warmup_seconds=5, budget_seconds=10)


def test_every_round_asks_for_the_same_work_and_checks_some_of_it() -> None:
    with serving(lambda body: (200, answer())) as (url, asked):
        found = load.single_stream(url, QUERIES, 1, BRIEF)
    assert found.errors == 0
    assert len(found.samples) >= 3
    assert found.checked == sum(sample.repeated for sample in found.samples) >= 0.01 * len(found.samples)
    assert sum(window.n for window in found.windows) == len(found.samples)
    for first in range(0, len(asked) - 2, 3):
        words = [body.get("text", " ".join(body.get("texts", []))) for body in asked[first : first + 3]]
        assert sorted(" ".join(words).split()) == sorted(
            ["one", "two", "three", "four", "five", "six", "seven", "eight"]
        )
    assert any(body not in GOLDEN for body in asked), "nothing was varied"
    assert any(body in GOLDEN for body in asked), "nothing was checked"


def test_the_same_seed_asks_the_same_questions() -> None:
    orders = []
    for seed in (5, 5, 6):
        with serving(lambda body: (200, answer())) as (url, asked):
            load.single_stream(url, QUERIES, seed, BRIEF)
        orders.append(asked[:12])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_server_that_fails_is_not_asked_for_long() -> None:
    with serving(lambda body: (503, b"full")) as (url, asked):
        found = load.single_stream(url, QUERIES, 1, BRIEF)
    assert found.errors == load.MAX_ERRORS + 1 == len(asked)
    assert found.first_error is not None
    assert "503: full" in found.first_error
    assert found.samples == []


def test_a_slow_model_is_stopped_when_the_tier_s_time_is_up() -> None:
    length = Length(4, 0, window_seconds=0.02, warmup_seconds=0.3, budget_seconds=0.6)

    def slowly(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.2)
        return 200, answer()

    with serving(slowly) as (url, asked):
        found = load.single_stream(url, QUERIES, 1, length)
    assert len(asked) <= 5
    assert not found.stable
    assert found.answers or not found.samples


def test_a_load_lasts_for_its_samples_and_tells_how_far_it_is() -> None:
    told: list[float] = []
    length = Length(timed_seconds=2, samples=20, window_seconds=0.1)
    with serving(lambda body: (200, answer())) as (url, _):
        found = load.single_stream(url, QUERIES, 1, length, told.append)
    assert len(found.samples) >= 20
    assert found.seconds >= 2
    assert sum(told) == 2
    assert set(told) == {0, 1}


def test_where_samples_are_waited_for_they_are_how_far_it_is() -> None:
    told: list[float] = []
    length = Length(timed_seconds=10, samples=12, window_seconds=0, budget_seconds=0.4, warmup_windows=1)

    def slowly(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.1)
        return 200, answer()

    with serving(slowly) as (url, _):
        found = load.single_stream(url, QUERIES, 1, length, told.append)
    assert len(found.samples) < 12
    assert sum(told) <= 10 * len(found.samples) / 12


def test_equal_answers_are_kept_once_and_counted_all() -> None:
    with serving(lambda body: (200, answer())) as (url, _):
        found = load.single_stream(url, QUERIES, 1, BRIEF)
    assert len(found.answers) <= len(QUERIES) < found.checked


def test_what_is_generated_has_an_end_where_the_golden_request_names_none() -> None:
    queries = [
        Query({"prompt": "one two three four five"}, generates=True),
        Query({"prompt": "six seven", "parameters": {"max_tokens": 5, "stop": ["."]}}, generates=True),
        Query({"text": "eight nine ten"}),
    ]
    with serving(lambda body: (200, answer())) as (url, asked):
        load.single_stream(url, queries, 1, BRIEF)
    golden = [query.request for query in queries]
    varied = [body for body in asked if body not in golden]
    assert [body for body in asked if body in golden], "golden requests are asked as they stand"
    for body in varied:
        if "six" in body.get("prompt", ""):
            assert body["parameters"] == {"max_tokens": 5, "stop": ["."]}
        elif "prompt" in body:
            assert body["parameters"] == {"max_tokens": load.TOKENS}
        else:
            assert "parameters" not in body


def test_one_request_is_always_measured_however_slow_the_warm_up_was() -> None:
    length = Length(4, 0, window_seconds=0.02, warmup_seconds=0.05, budget_seconds=0.06)

    def slowly(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.1)
        return 200, answer()

    with serving(slowly) as (url, _):
        found = load.single_stream(url, QUERIES, 1, length)
    assert len(found.samples) == found.checked == 1


def test_a_stream_is_timed_to_its_first_part_and_to_its_answer() -> None:
    chunks = events(("part", b'{"text": "a"}'), ("part", b'{"text": "b"}'), ("answer", generated("ab")))
    with serving(lambda body: (200, chunks)) as (url, _):
        queries = [Query({"prompt": "x y"}, generates=True)]
        found = load.generation(url, queries, 1, Length(0, samples=3, window_seconds=0, warmup_windows=1))
    assert found.errors == 0
    assert len(found.samples) >= 3
    assert all(sample.first_ms is not None and sample.first_ms <= sample.taken_ms for sample in found.samples)
    assert found.samples[0].usage == {"prompt_tokens": 3, "completion_tokens": 2}
    assert found.torn is None


def test_a_stream_whose_parts_are_not_its_answer_is_noticed() -> None:
    with serving(lambda body: (200, events(("part", b'{"text": "a"}'), ("answer", generated("abc"))))) as (
        url,
        _,
    ):
        queries = [Query({"prompt": "x y"}, generates=True)]
        found = load.generation(url, queries, 1, Length(0, samples=1, window_seconds=0, warmup_windows=1))
    assert found.torn is not None
    assert "'a'" in found.torn
    assert "'abc'" in found.torn
