"""What a model is served with, from records that say one thing each, and the reasons that go with it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.core import packages

from mlos.engines import installed
from mlos.errors import CorruptError, RefusedError
from mlos.host.environment import record
from mlos.store import Package, Store
from mlos.tune import Batching, Candidate, Precision, Ratio, Trial, Tuning, chosen, load
from mlos.tune.record import path_of, save

HOST = record()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return packages.double(Store(tmp_path / "store"))


def ratio(value: float) -> Ratio:
    return Ratio(ratio=value, low=value - 0.01, high=value + 0.01, n=10, floor=0.01)


def trial(package: Package, verdict: Any, value: float | None = None, **changed: Any) -> Trial:
    of = {"digest": package.digest, "engine": "openvino", "precision": "fp32", "threads": 2, "streams": 1}
    candidate = Candidate(**{**of, **{key: changed.pop(key) for key in of if key in changed}})
    return Trial(
        candidate=candidate,
        verdict=verdict,
        reason="because",
        tolerance=candidate.precision,
        ratio=None if value is None else ratio(value),
        **changed,
    )


def tuned(package: Package, *trials: Trial, precision: str = "auto", **changed: Any) -> Tuning:
    default = trial(package, "default", 1.0, engine="onnxruntime")
    fields = {
        "model": package.name,
        "digest": package.digest,
        "precision": precision,
        "tuned_at": datetime(2026, 11, 24, tzinfo=UTC),
        "mlos": "0.1.0",
        "engines": {name: installed()[name] for name in ("onnxruntime", "openvino")},
        "host": HOST,
        "seed": 1,
        "trials": (default, *trials),
    }
    return Tuning.model_validate({**fields, **changed})


def choose(
    package: Package,
    tuning: Tuning | None,
    precision: Precision = "fp32",
    threads: int | None = None,
    variants: tuple[Package, ...] = (),
) -> tuple[str, str]:
    choice = chosen(
        package,
        variants,
        tuning,
        precision,
        threads=threads or 2,
        fixed_threads=threads is not None,
    )
    return str(choice.candidate), choice.reason


def test_without_a_record_it_is_the_default_and_says_why(package: Package) -> None:
    for precision in ("fp32", "auto"):
        what, why = choose(package, None, precision)
        assert what == "onnxruntime fp32, 2 threads"
        assert why == "the default engine: not tuned on this host (axon tune double)"


def test_the_fastest_that_is_faster_is_taken(package: Package) -> None:
    tuning = tuned(
        package,
        trial(package, "faster", 0.9, threads=1),
        trial(package, "faster", 0.8),
        trial(package, "no difference found", 0.7, engine="onnxruntime", threads=1),
        trial(package, "faster", 0.4, precision="bf16"),
    )
    what, why = choose(package, tuning)
    assert what == "openvino fp32, 2 threads"
    assert "takes 0.800 [0.790, 0.810] of the time of onnxruntime fp32, 2 threads, parity fp32 passed" in why
    assert choose(package, tuning, "auto")[0] == "openvino bf16, 2 threads"
    assert choose(package, tuning, "bf16")[0] == "openvino bf16, 2 threads"


def test_what_is_likely_faster_is_taken_too(package: Package) -> None:
    tuning = tuned(
        package,
        trial(package, "faster", 0.9, threads=1),
        trial(package, "likely faster", 0.85),
        trial(package, "likely faster", 0.8, streams=2),
    )
    assert choose(package, tuning)[0] == "openvino fp32, 2 threads, 2 streams"


def test_in_streams_it_is_where_several_runs_at_once_are_faster_than_in_a_row(package: Package) -> None:
    tuning = tuned(
        package,
        trial(package, "faster", 0.8),
        trial(package, "faster", 0.9, streams=4, threads=4),  # what serves alone was not timed so
        trial(package, "faster", 0.3, streams=2, engine="onnxruntime"),
        trial(package, "faster", 0.7, streams=2, batching=Batching(most=4, longest=16)),
        trial(package, "no difference found", 0.6, streams=3),
    )
    what, why = choose(package, tuning)
    assert what == "openvino fp32, 2 threads, 2 streams"
    assert "takes 0.800" in why
    assert why.endswith("2 runs at once take 0.700 [0.690, 0.710] of the time of as many in a row")
    choice = chosen(package, (), tuning, "fp32", threads=2, fixed_threads=False)
    assert choice.batching == Batching(most=4, longest=16)
    assert choose(package, tuning, threads=1)[0] == "onnxruntime fp32, 1 thread"


def test_where_nothing_is_faster_the_default_stays(package: Package) -> None:
    tuning = tuned(package, trial(package, "slower", 1.2), trial(package, "no difference found", 0.99))
    what, why = choose(package, tuning)
    assert what == "onnxruntime fp32, 2 threads"
    assert "no candidate was faster" in why


def test_what_failed_parity_is_never_taken(package: Package) -> None:
    tuning = tuned(package, trial(package, "refused", None), trial(package, "refused", None, precision="bf16"))
    assert choose(package, tuning, "auto")[0] == "onnxruntime fp32, 2 threads"
    with pytest.raises(RefusedError, match="double was never proved in bf16 on this host") as caught:
        choose(package, tuning, "bf16")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("axon tune double --precision bf16")


def test_a_forced_precision_is_taken_although_it_is_slower(package: Package) -> None:
    tuning = tuned(package, trial(package, "slower", 1.5, precision="bf16"))
    assert choose(package, tuning, "bf16")[0] == "openvino bf16, 2 threads"
    assert choose(package, tuning, "auto")[0] == "onnxruntime fp32, 2 threads"


def test_so_is_the_best_for_a_number_of_threads_that_the_default_has_not(package: Package) -> None:
    tuning = tuned(
        package,
        trial(package, "slower", 1.5, threads=1),
        trial(package, "slower", 1.3, threads=1, precision="bf16"),
    )
    assert choose(package, tuning, "fp32", threads=1)[0] == "openvino fp32, 1 thread"
    assert choose(package, tuning, "auto", threads=1)[0] == "openvino bf16, 1 thread"


def test_a_forced_precision_without_a_record_takes_a_variant_or_is_refused(package: Package) -> None:
    with pytest.raises(RefusedError, match="never proved in int8") as caught:
        choose(package, None, "int8")
    assert "axon quantize double --precision int8" in str(caught.value.hint)
    artifact = package.manifest.artifact.model_copy(update={"precision": "int8"})
    variant = Package(
        package.manifest.model_copy(update={"artifact": artifact, "variant_of": package.digest}),
        "f" * 64,
        package.folder,
        package.record,
        owns_name=True,
    )
    what, why = choose(package, None, "int8", variants=(variant,))
    assert what == "onnxruntime int8, 2 threads"
    assert why.startswith("the variant in int8")
    # Asked for by its own name it is what it is, whatever the server was started for.
    assert choose(variant, None, "bf16")[0] == "onnxruntime int8, 2 threads"


def test_threads_that_a_person_set_are_kept(package: Package) -> None:
    tuning = tuned(package, trial(package, "faster", 0.8), trial(package, "faster", 0.7, threads=1))
    assert choose(package, tuning)[0] == "openvino fp32, 1 thread"
    assert choose(package, tuning, threads=2)[0] == "openvino fp32, 2 threads"
    what, why = choose(package, tuning, threads=8)
    assert what == "onnxruntime fp32, 8 threads"
    assert "holds nothing" in why


def test_a_record_of_another_version_is_not_believed(package: Package) -> None:
    tuning = tuned(package, trial(package, "faster", 0.8), engines={"openvino": "1.0", "onnxruntime": "1.0"})
    what, why = choose(package, tuning)
    assert what == "onnxruntime fp32, 2 threads"
    assert "tuned with openvino 1.0, installed is" in why


def test_an_engine_that_is_gone_is_missed_only_where_it_was_faster(package: Package) -> None:
    engines = {name: installed()[name] for name in ("onnxruntime", "openvino")} | {"gone": "1.0"}
    fast, gone = trial(package, "faster", 0.8), {"engine": "gone", "precision": "bf16"}
    tuning = tuned(package, fast, trial(package, "slower", 1.2, **gone), engines=engines)
    assert choose(package, tuning)[0] == "openvino fp32, 2 threads"
    with pytest.raises(RefusedError, match="holds nothing faster in bf16"):
        choose(package, tuning, "bf16")
    tuning = tuned(package, fast, trial(package, "faster", 0.7, **gone), engines=engines)
    what, why = choose(package, tuning)
    assert what == "onnxruntime fp32, 2 threads"
    assert "tuned with gone 1.0, installed is none" in why


def test_what_was_not_among_the_candidates_is_said(package: Package) -> None:
    tuning = tuned(package, trial(package, "faster", 0.8), precision="fp32")
    what, why = choose(package, tuning, "auto")
    assert what == "openvino fp32, 2 threads"
    assert "only fp32 was tuned (axon tune double --precision auto)" in why


def test_a_record_is_read_as_it_was_written_on_its_host_alone(package: Package, tmp_path: Path) -> None:
    batching = Batching(most=4, longest=16)
    tuning = tuned(package, trial(package, "faster", 0.8, seconds={"16 tokens": (0.1, 0.2)}, batching=batching))
    save(tmp_path, tuning)
    save(tmp_path, tuning)
    assert load(tmp_path, HOST.id, package.digest) == tuning
    assert load(tmp_path, "another", package.digest) is None
    assert load(tmp_path, HOST.id, "0" * 64) is None
    path = path_of(tmp_path, HOST.id, package.digest)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    for damaged in (path.read_text()[:-20], "{}", path.read_text().replace(package.digest, "0" * 64)):
        path.write_text(damaged)
        with pytest.raises(CorruptError, match="tuning record") as caught:
            load(tmp_path, HOST.id, package.digest)
        assert "axon tune" in str(caught.value.hint)
