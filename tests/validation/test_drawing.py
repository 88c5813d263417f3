from __future__ import annotations

import pytest
from tests.validation import example

from mlos.validation import drawing
from mlos.validation.results import Run


def test_the_bar_of_an_error_is_logarithmic() -> None:
    assert drawing.closeness(1e-9) == 0.0
    assert drawing.closeness(1.0) == pytest.approx(6 / 7)
    assert drawing.closeness(100.0) == 1.0


def test_the_histogram_counts_every_sample(run: Run) -> None:
    latency = run.rows[0].latency
    assert latency is not None
    assert sum(drawing.histogram(latency.samples_ms).counts) == latency.n
    assert sum(part.amount for part in drawing.stage_parts(latency)) == pytest.approx(latency.client_median_ms)


def test_a_few_slow_samples_are_counted_and_do_not_squeeze_the_rest() -> None:
    samples = [10 + number / 100 for number in range(500)] + [900.0, 1000.0]
    found = drawing.histogram(samples)
    assert not found.logarithmic
    assert found.beyond == 2
    assert sum(found.counts) == 500
    assert found.high_ms < 20
    assert found.slowest_ms == 1000
    assert found.place(1000) == 1.0
    assert found.outline.count("M") == sum(count > 0 for count in found.counts)


def test_a_long_tail_is_drawn_by_magnitude_and_whole() -> None:
    samples = [1.0] * 90 + [10.0] * 8 + [1000.0] * 2
    found = drawing.histogram(samples)
    assert found.logarithmic
    assert found.beyond == 0
    assert sum(found.counts) == 100
    assert found.place(1.0) == 0.0
    assert found.place(10.0) == pytest.approx(1 / 3)
    assert found.place(1000.0) == found.place(5000.0) == 1.0


@pytest.mark.parametrize("samples", [[5.0], [5.0, 5.0, 5.0]])
def test_equal_samples_are_one_bar(samples: list[float]) -> None:
    found = drawing.histogram(samples)
    assert [count for count in found.counts if count] == [len(samples)]


def test_names_of_percentiles_that_lie_together_stand_on_rows_of_their_own() -> None:
    bert = example.run().rows[0].latency
    assert bert is not None
    axis = drawing.histogram(bert.samples_ms)
    names = {"p50": "p50_ms", "p90": "p90_ms", "p95": "p95_ms", "p99": "p99_ms"}
    found = drawing.marks(bert, names, axis)
    assert [mark.name for mark in found] == list(names)
    assert all(mark.low <= mark.place <= mark.high for mark in found)
    for one in found:
        for other in found:
            together = one is not other and abs(one.place - other.place) < 0.1
            assert not (together and one.row == other.row)


def test_percentiles_that_may_not_be_printed_are_not_marked() -> None:
    t5 = example.run().rows[3].latency
    assert t5 is not None
    assert t5.p99_ms is None
    assert [mark.name for mark in drawing.marks(t5, {"p99": "p99_ms"}, drawing.histogram(t5.samples_ms))] == []


def test_each_golden_request_has_its_own_samples() -> None:
    bert = example.run().rows[0].latency
    assert bert is not None
    found = drawing.cases(bert, bert.samples_ms, drawing.histogram(bert.samples_ms))
    assert [case.name for case in found] == ["short", "masked", "padded"]
    assert sum(case.n for case in found) == bert.n
    assert found[0].place < found[1].place < found[2].place


def test_loading_is_the_worker_s_stages_and_the_server_s_own_time(run: Run) -> None:
    (named,) = (drawing.load_parts(row) for row in example.run().rows if row.name == "bert")
    assert [part.name for part in named] == ["start", "verify", "confine", "open", "warm_up", "server"]
    assert sum(part.share for part in named) == pytest.approx(1)
    assert [(part.name, part.amount) for part in drawing.load_parts(run.rows[0])] == [
        ("worker", 1.0),
        ("server", pytest.approx(0.6)),
    ]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (0.0123, "0.012"), (1.5, "1.50"), (61.04, "61.0"), (171.2, "171"), (1318.4, "1,318")],
)
def test_measured_numbers_keep_three_digits(value: float | None, shown: str) -> None:
    assert drawing.measured(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(2.345, "2.35 s"), (190, "3 min 10 s"), (7300, "2 h 1 min")])
def test_times_are_written_for_people(seconds: float, shown: str) -> None:
    assert drawing.lasted(seconds) == shown


def test_candidates_stand_in_order_around_the_default() -> None:
    bert = example.run().rows[0]
    assert bert.serving is not None
    assert bert.serving.tuning is not None
    rows, one = drawing.comparisons(bert.serving.tuning)
    assert [row.trial.verdict for row in rows] == ["faster", "faster", "default", "slower"]
    assert all(row.low <= row.place <= row.high for row in rows)
    assert rows[1].high < one < rows[3].low
    assert rows[2].low < one < rows[2].high
