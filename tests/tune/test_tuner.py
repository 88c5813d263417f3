"""A small encoder is tuned for real: candidates proved and timed, a lying one found out, the rest recorded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.core import packages
from tests.small import Small

from mlos.console import Console, OutputFormat, ProgressMode
from mlos.errors import RefusedError
from mlos.host.environment import record
from mlos.settings import Settings
from mlos.store import Package, Store
from mlos.tune import Precision, Tuning, chosen
from mlos.tune.candidates import streamed
from mlos.tune.choice import TAKEN
from mlos.tune.record import Candidate, compiled_folder
from mlos.tune.shapes import BATCH
from mlos.tune.tuner import patience, tune

QUIET = Console(OutputFormat.QUIET, ProgressMode.NONE)
LIAR = """
from mlos.engines.onnxruntime import OnnxRuntimeEngine


class Liar(OnnxRuntimeEngine):
    name = "liar"

    def run(self, inputs, outputs=None):
        return {name: value + 0.01 for name, value in super().run(inputs, outputs).items()}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def package(home: Path, small: Small) -> Package:
    return small.install("bert", Store(home / "store"))


@pytest.fixture(scope="module")
def tuning(home: Path, package: Package) -> Tuning:
    """With an engine among the candidates whose answers are slightly wrong."""
    modules = home / "modules"
    described = modules / "liar-1.dist-info"
    described.mkdir(parents=True)
    (modules / "liar.py").write_text(LIAR)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: liar\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.engines.v1]\nliar = liar:Liar\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(modules))
        patch.setenv("PYTHONPATH", os.pathsep.join((str(modules), os.environ.get("PYTHONPATH", ""))))
        return tune(package, "auto", Settings(home=home), QUIET, threads=2, pairs=3, seed=5)


def test_every_engine_and_precision_is_tried_and_the_default_first(tuning: Tuning, package: Package) -> None:
    tried = [(trial.candidate.engine, trial.candidate.precision) for trial in tuning.trials]
    assert tried[0] == ("onnxruntime", "fp32")
    assert {("openvino", "fp32"), ("liar", "fp32")} <= set(tried)
    assert tuning.default.verdict == "default"
    assert {trial.candidate.digest for trial in tuning.trials} == {package.digest}
    assert tuning.host == record()
    assert set(tuning.engines) == {engine for engine, _ in tried}


def test_what_answers_otherwise_than_the_framework_is_refused_with_its_figures(tuning: Tuning) -> None:
    liars = [trial for trial in tuning.trials if trial.candidate.engine == "liar"]
    assert {liar.candidate.threads for liar in liars} == {1, 2}
    for liar in liars:
        assert liar.verdict == "refused"
        assert liar.reason.startswith("failed parity: ")
        assert "0.01" in liar.reason
        assert liar.ratio is None


def test_what_passed_was_held_to_the_row_of_its_precision_and_timed(tuning: Tuning) -> None:
    passed = [trial for trial in tuning.trials if trial.passed]
    assert {"onnxruntime", "openvino"} <= {trial.candidate.engine for trial in passed}
    for trial in passed:
        assert trial.tolerance == trial.candidate.precision
        assert trial.parity
        assert all(measure.passed and measure.tolerance == trial.tolerance for measure in trial.parity)
        assert trial.ratio is not None
        assert trial.ratio.n == 3
        assert {"16 tokens", f"16 tokens x {BATCH}"} <= trial.seconds.keys()
        for side in (trial.seconds, trial.reference_seconds):
            assert all(len(times) == 6 and min(times) > 0 for times in side.values())


def test_what_serves_a_run_alone_is_timed_in_streams_too(tuning: Tuning, package: Package) -> None:
    """Which candidate serves a run alone depends on the time; one with one thread has nothing to share."""
    one = [trial for trial in tuning.trials if trial.candidate.streams == 1]
    several = tuning.trials[len(one) :]
    choice = chosen(package, (), tuning, "fp32", threads=2, fixed_threads=False).candidate
    alone = choice.model_copy(update={"streams": 1})
    own = [trial for trial in several if trial.candidate.model_copy(update={"streams": 1}) == alone]
    assert [trial.candidate for trial in own] == list(streamed(alone, package.manifest.artifact))
    assert choice.streams == (2 if any(trial.verdict in TAKEN for trial in own) else 1)
    for trial in several:
        best = trial.candidate.model_copy(update={"streams": 1})
        assert best in [each.candidate for each in one if each.verdict in ("default", *TAKEN)]
        assert f"of the time of runs in a row by {best}" in trial.reason


def test_the_threads_are_shared_by_two_runs_up_to_as_many_as_threads(package: Package) -> None:
    artifact = package.manifest.artifact
    for threads, streams in ((1, []), (2, [2]), (8, [8, 4, 2])):
        alone = Candidate(digest=package.digest, engine="onnxruntime", precision="fp32", threads=threads)
        assert [each.streams for each in streamed(alone, artifact)] == streams


def test_batching_is_recorded_only_with_its_gain(tuning: Tuning) -> None:
    for trial in tuning.trials:
        if trial.passed:
            assert {"16 tokens", "64 tokens"} >= trial.together.keys() > set()
            assert trial.unbatched is None
            assert (trial.batching is not None) == trial.together["16 tokens"].likely_faster


def test_what_an_engine_compiled_is_kept_for_the_choice_alone(
    tuning: Tuning, package: Package, home: Path
) -> None:
    kept = {
        trial.candidate.engine: compiled_folder(home, tuning.host.id, trial.candidate)
        for trial in tuning.trials
    }
    classes: set[Precision] = {"fp32", "auto"}
    served = {
        chosen(package, (), tuning, each, threads=2, fixed_threads=False).candidate.engine for each in classes
    }
    assert {engine for engine, folder in kept.items() if folder.is_dir()} == served
    assert all(any(kept[engine].iterdir()) for engine in served)


def test_a_candidate_that_hangs_is_not_waited_for_all_day() -> None:
    assert [patience(seconds) for seconds in (1, 60, 3000)] == [300, 600, 3600]


def test_what_no_framework_answers_for_cannot_be_tuned(tmp_path: Path) -> None:
    bare = packages.double(Store(tmp_path / "store"))
    with pytest.raises(RefusedError, match="without a golden record nothing could prove another engine"):
        tune(bare, "fp32", Settings(home=tmp_path), QUIET, threads=1, pairs=3, seed=0)
