from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mlos.errors import NotFoundError, RefusedError
from mlos.validation import stats
from mlos.validation.results import Run, read_runs


def test_a_run_reads_back_as_it_was_written(run: Run, tmp_path: Path) -> None:
    path = run.save(tmp_path)
    assert Run.parse(path.read_bytes(), str(path)) == run
    assert read_runs([tmp_path, path]) == [run]
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_result_of_schema_1_is_read_as_it_is() -> None:
    path = Path(__file__).with_name("data") / "schema-1.json"
    (run,) = read_runs([path])
    assert run.schema_version == 1
    bert, minilm = run.rows
    assert bert.latency is not None
    assert (bert.family, bert.generation, bert.latency.intervals) == (None, None, {})
    assert (bert.latency.cases, bert.latency.repeat_ratio) == ((), None)
    assert minilm.status == "failed"


def test_the_counts_and_the_parity_verdict(run: Run) -> None:
    assert (run.count("passed"), run.count("failed"), run.count("not run")) == (1, 1, 0)
    assert run.parity_failed
    worst = run.rows[1].parity
    assert worst is not None
    assert worst.worst is not None
    assert worst.worst.worst_ratio == 300.0


def test_numbers_that_the_samples_do_not_say_are_refused(run: Run) -> None:
    data = json.loads(run.to_json())
    data["rows"][0]["latency"]["p50_ms"] = 1.0
    with pytest.raises(RefusedError, match=r"p50_ms is 1\.0, the samples say"):
        Run.parse(json.dumps(data).encode(), "result.json")


def test_a_newer_schema_is_refused_with_what_to_do(run: Run) -> None:
    data = json.loads(run.to_json()) | {"schema_version": 4}
    with pytest.raises(RefusedError, match="schema 4") as refused:
        Run.parse(json.dumps(data).encode(), "result.json")
    assert "upgrade" in str(refused.value.hint)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[" * 100_000])
def test_what_is_no_result_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(RefusedError, match=r"result\.json"):
        Run.parse(data, "result.json")


def test_no_results_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no results"):
        read_runs([tmp_path])
    with pytest.raises(NotFoundError, match="no such result"):
        read_runs([tmp_path / "absent"])


@pytest.mark.parametrize(("percentile", "least"), [(90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_a_percentile_needs_its_least_number_of_samples(percentile: float, least: int) -> None:
    assert stats.minimum_samples(percentile) == least
    samples = [float(number) for number in range(least)]
    assert stats.percentile(samples[:-1], percentile) is None
    assert stats.percentile(samples, percentile) == math.ceil(percentile / 100 * least) - 1


def test_the_middle_half_leaves_out_the_fastest_and_the_slowest() -> None:
    assert stats.middle_half([9.0, 1.0, 5.0, 4.0, 100.0, 6.0, 5.5, 0.5]) == [3, 2, 6, 5]
    assert stats.middle_half([3.0]) == [0]
    assert len(stats.middle_half([1.0, 2.0, 3.0])) == 3


def test_windows_agree_within_ten_percent_or_not_at_all() -> None:
    calm, wild = stats.WindowSummary(100, 10), stats.WindowSummary(100, 11.2)
    assert stats.steady([wild, calm, calm, calm])
    assert not stats.steady([calm, calm, wild])
    assert not stats.steady([calm, calm])
