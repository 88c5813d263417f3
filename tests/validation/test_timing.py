from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mlos.validation.timing import Generation, Latency, Window


def latency(samples: list[float], **changes: Any) -> Latency:
    given: dict[str, Any] = {
        "seconds": 4.0,
        "stages_ms": {"compute": 1.0},
        "warmup": (),
        "stable": True,
        "checked": 1,
        "steal_share": 0.0,
    }
    return Latency.measured(samples, samples, **(given | changes))


def generation(**changes: Any) -> Generation:
    given: dict[str, Any] = {
        "first_ms": [100.0, 120.0],
        "total_ms": [200.0, 320.0],
        "prompt_tokens": [20, 24],
        "completion_tokens": [11, 1],
        "seconds": 0.52,
        "warmup": (),
        "stable": True,
        "checked": 1,
        "steal_share": 0.0,
    }
    return Generation.measured(**(given | changes))


def test_numbers_that_are_claimed_carry_an_interval_and_others_none() -> None:
    samples = [10.0 + number % 9 for number in range(200)]
    windows = tuple(Window(n=20, throughput=50.0 + number % 3, p90_ms=18) for number in range(10))
    plain = latency(samples, windows=windows)
    claimed = latency(samples, windows=windows, claimed=True)
    assert plain.intervals == {}
    assert set(claimed.intervals) == {"p50_ms", "p90_ms", "p95_ms", "throughput"}, "p99 has too few samples"
    assert claimed.throughput == 50.0
    assert claimed.intervals["throughput"].low <= 51 <= claimed.intervals["throughput"].high


def test_speeds_of_generation_are_computed_from_what_the_client_saw() -> None:
    found = generation()
    assert found.tpot_ms == [10.0], "a single token has no time after the first"
    assert found.tokens_per_second == pytest.approx(12 / 0.52, abs=1e-3)
    assert found.prefill_per_second == pytest.approx(44 / 0.22, abs=1e-3)
    assert found.ttft_p50_ms is None, "two samples say nothing of a percentile"
    assert found.n == 2


def test_intervals_of_generation() -> None:
    count = 70
    found = generation(
        first_ms=[100.0 + number % 5 for number in range(count)],
        total_ms=[400.0 + number % 7 for number in range(count)],
        prompt_tokens=[20] * count,
        completion_tokens=[16] * count,
        claimed=True,
    )
    assert {"ttft_p50_ms", "ttft_p90_ms", "tpot_p50_ms", "tpot_p90_ms"} <= set(found.intervals)
    for name in ("tokens_per_second", "prefill_per_second"):
        interval = found.intervals[name]
        assert interval.low <= getattr(found, name) <= interval.high
        assert interval.method == "BCa bootstrap"


def test_a_record_whose_numbers_are_not_its_samples_is_none() -> None:
    data = generation().model_dump()
    with pytest.raises(ValidationError, match="tokens_per_second"):
        Generation.model_validate(data | {"tokens_per_second": 1e6})
    with pytest.raises(ValidationError, match="differ in length"):
        Generation.model_validate(data | {"completion_tokens": (11,)})
    with pytest.raises(ValidationError, match="cases do not belong"):
        Generation.model_validate(data | {"cases": (0, 4), "case_names": ("a",)})
    with pytest.raises(ValidationError, match="not there"):
        Generation.model_validate(data | {"repeated": (9,)})


def test_answers_from_a_cache_are_noticed_and_equal_ones_are_not() -> None:
    """Two golden requests, one ten times as long; a quarter of them are repeated as they stand."""
    count = 400
    cases = tuple(number % 2 for number in range(count))
    repeated = tuple(place for place in range(count) if place % 4 in (0, 1) and place % 8 < 4)
    honest = [(10.0 if case else 1.0) * (1 + place % 5 / 100) for place, case in enumerate(cases)]
    cached = [time * (0.5 if place in repeated else 1) for place, time in enumerate(honest)]
    told: dict[str, Any] = {"cases": cases, "case_names": ("short", "long"), "repeated": repeated}
    assert not latency(honest, **told).answers_from_memory
    assert latency(honest, **told).repeat_ratio == pytest.approx(1, abs=0.05)
    assert latency(cached, **told).answers_from_memory
    assert latency(cached, **told).repeat_ratio == pytest.approx(0.5, abs=0.05)


def test_a_few_lucky_repeats_prove_nothing() -> None:
    told: dict[str, Any] = {"cases": (0,) * 20, "case_names": ("one",), "repeated": (0, 1)}
    assert not latency([1.0, 1.0] + [2.0] * 18, **told).answers_from_memory


def test_times_are_told_apart_by_what_was_asked() -> None:
    found = latency([1.0, 9.0, 2.0], cases=(0, 1, 0), case_names=("short", "long", "never"))
    assert found.by_case(found.samples_ms) == {"short": [1.0, 2.0], "long": [9.0]}


def test_what_speaks_against_a_number_is_flagged() -> None:
    assert latency([1.0]).flags == ()
    assert "UNSTABLE" in latency([1.0], stable=False).flags[0]
    assert "steal 2.0%" in latency([1.0], steal_share=0.02).flags[0]
