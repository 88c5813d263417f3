"""The real programs: `mlos validate` installs with axon, serves with mlos_core, and must be able to fail."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]  # its stubs are another distribution
import pytest
from tests.axon.test_zoo import publish

from mlos.model import InferenceRequest, Manifest
from mlos.parity import Case, GoldenRecord
from mlos.store import InstallRecord, Package, Store
from mlos.validation.results import Row, Run, read_runs

MLOS = Path(sys.executable).with_name("mlos")
REFERENCE = "seeded/tiny/bert"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def mlos(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MLOS, *arguments],
        env=os.environ | {"MLOS_HOME": str(home), "OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def only_run(folder: Path) -> Run:
    (run,) = read_runs([folder])
    return run


def gates(row: Row) -> dict[str, str]:
    return {gate.name: gate.status for gate in row.gates}


@pytest.fixture(scope="module")
def passing(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str, Path]:
    """A run in which everything is as it should be; it leaves the package in the store."""
    folder = tmp_path_factory.mktemp("results")
    done = mlos(home, "validate", "--model", REFERENCE, "--seed", "11", "--results", str(folder), "--keep")
    assert done.returncode == 0, done.stderr + done.stdout
    return only_run(folder), done.stdout + done.stderr, folder


@pytest.fixture(scope="module")
def package(passing: object, home: Path) -> Package:
    (package,) = Store(home / "store").packages()
    return package


def copy_with_golden(package: Package, home: Path, cases: tuple[Case, ...] | None) -> None:
    """Put the package into a store of its own, at its reference, with another golden record, or with none."""
    store = Store(home / "store")
    with store.staging() as staging:
        shutil.copytree(package.folder, staging.folder, dirs_exist_ok=True)
        (staging.folder / "manifest.json").unlink(missing_ok=True)
        kept = [file for file in package.manifest.files if cases is not None or file.role != "golden"]
        assert package.manifest.golden is not None
        if cases is None:
            shutil.rmtree(staging.folder / package.manifest.golden)
        else:
            folder = staging.folder / package.manifest.golden
            for path in folder.iterdir():  # copies of read-only blobs
                path.unlink()
            GoldenRecord(cases, {"torch": "altered"}).save(folder)
        entries = []
        for file in kept:
            data = (staging.folder / file.path).read_bytes()
            changed = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            entries.append(file.model_copy(update=changed))
        changes: dict[str, Any] = {"files": tuple(entries)}
        if cases is None:
            changes |= {"golden": None, "parity": ()}
        manifest = Manifest.model_validate(package.manifest.model_copy(update=changes).model_dump())
        store.commit(staging, manifest, InstallRecord(installed_at=datetime.now(UTC), axon="test"))


def cases_of(package: Package) -> tuple[Case, ...]:
    assert package.manifest.golden is not None
    return GoldenRecord.load(package.path(package.manifest.golden)).cases


def test_a_sound_model_passes_every_gate(passing: tuple[Run, str, Path]) -> None:
    run, _, _ = passing
    (row,) = run.rows
    assert row.status == "passed"
    assert gates(row) == dict.fromkeys(
        ("install", "load", "parity", "results", "traffic", "stages", "shutdown"), "passed"
    )
    assert row.parity is not None
    assert {measure.output for measure in row.parity.over_http} == {"logits", "last_hidden_state"}
    assert all(measure.passed for case in row.parity.cases for measure in case.measures)
    assert len(row.parity.cases) == len(row.results) >= 3
    assert (row.weights, row.format, row.precision, row.mode) == ("seeded", "onnx", "fp32", "userspace")
    assert row.memory_bytes
    assert row.peak_memory_bytes
    assert row.peak_memory_bytes >= row.memory_bytes
    assert row.family == "nlp"
    assert row.load is not None
    assert set(row.load.stages) == {"start", "verify", "confine", "open", "warm_up"}
    assert row.install is not None
    assert not row.install.cached
    assert {"download", "verify", "convert", "parity", "package"} <= row.install.seconds.keys()


def test_a_second_run_reuses_the_package_and_says_so(package: Package, home: Path, tmp_path: Path) -> None:
    arguments = ("--model", package.reference, "--progress", "json", "--results", str(tmp_path))
    done = mlos(home, "validate", *arguments)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {"bert: load", "bert: parity through HTTP", "bert: traffic"} <= {event["step"] for event in told}
    (row,) = only_run(tmp_path).rows
    assert row.install is not None
    assert row.install.cached
    assert "package reused (cached)" in done.stderr
    assert "1 of 1 packages reused (cached)" in done.stderr
    assert " cached " in done.stdout


@pytest.mark.slow
def test_the_release_tier_measures_a_minute_and_claims_intervals(home: Path, tmp_path: Path) -> None:
    done = mlos(home, "validate", "--model", REFERENCE, "--tier", "release", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = only_run(tmp_path).rows
    assert row.latency is not None
    assert row.latency.seconds >= 60
    assert row.latency.n >= 64
    for name in ("p50_ms", "p90_ms", "throughput"):
        interval, value = row.latency.intervals[name], getattr(row.latency, name)
        assert interval.low <= value <= interval.high
    assert row.commands["all"].endswith(f"--tier release --seed {only_run(tmp_path).seed}")
    assert "numbers with intervals" in done.stdout


def test_the_numbers_can_be_computed_anew(passing: tuple[Run, str, Path]) -> None:
    run, _, _ = passing
    latency = run.rows[0].latency
    assert latency is not None
    assert latency.n == len(latency.samples_ms) == len(latency.server_ms)
    assert latency.checked >= 0.01 * latency.n
    assert latency.seconds + sum(window.n / window.throughput for window in latency.warmup) < 11


def test_the_row_says_how_to_see_it_again(passing: tuple[Run, str, Path]) -> None:
    run, _, _ = passing
    (row,) = run.rows
    assert row.reference is not None
    assert row.reference.startswith(REFERENCE + "@")
    assert row.commands["all"] == f"mlos validate --model {row.reference} --tier smoke --seed 11"
    assert run.environment["cpu"]
    assert run.versions["onnxruntime"]


def test_a_person_is_shown_the_table_the_claim_and_the_page(passing: tuple[Run, str, Path]) -> None:
    _, shown, folder = passing
    assert "no performance claim" in shown
    assert "1 passed, 0 failed, 0 not run" in shown
    assert (folder / "index.html").is_file()
    assert str(folder / "index.html") in shown.replace("\n", "")


def test_no_path_of_this_machine_is_in_the_result(passing: tuple[Run, str, Path], home: Path) -> None:
    run, _, folder = passing
    rows = json.dumps([row.model_dump(mode="json") for row in run.rows])
    assert str(home) not in rows
    assert str(folder) not in rows


def test_outputs_other_than_the_framework_s_fail_and_exit_5(package: Package, tmp_path: Path) -> None:
    first, *others = cases_of(package)
    altered = {name: tensor + np.float32(0.01) for name, tensor in first.outputs.items()}
    copy_with_golden(
        package,
        tmp_path,
        (Case(first.name, first.request, first.task, first.inputs, altered, first.result), *others),
    )
    done = mlos(tmp_path, "validate", "--model", REFERENCE, "--results", str(tmp_path / "results"))
    assert done.returncode == 5, done.stderr
    (row,) = only_run(tmp_path / "results").rows
    assert row.status == "failed"
    assert gates(row)["parity"] == "failed"
    assert gates(row)["results"] == "passed"
    assert row.reason is not None
    assert "logits" in row.reason
    assert "tolerance" in row.reason
    assert row.parity is not None
    assert gates(row)["traffic"] == "not run", "no speed is measured where the answers are wrong"
    assert row.latency is None
    assert {case.case for case in row.parity.cases if not all(m.passed for m in case.measures)} == {first.name}


def test_a_result_other_than_the_framework_s_fails_and_exits_5(package: Package, tmp_path: Path) -> None:
    *others, last = cases_of(package)
    other = InferenceRequest(text="Something else is asked than was answered.")
    wrong = Case(last.name, other, "embeddings", last.inputs, last.outputs, [{"embedding": [0.5]}])
    copy_with_golden(package, tmp_path, (*others, wrong))
    done = mlos(tmp_path, "validate", "--model", REFERENCE, "--results", str(tmp_path / "results"))
    assert done.returncode == 5, done.stderr
    (row,) = only_run(tmp_path / "results").rows
    assert (gates(row)["parity"], gates(row)["results"]) == ("passed", "failed")
    assert [check.case for check in row.results if not check.passed] == [last.name]


def test_a_package_without_a_golden_record_never_passes(package: Package, tmp_path: Path) -> None:
    copy_with_golden(package, tmp_path, None)
    done = mlos(tmp_path, "validate", "--model", REFERENCE, "--results", str(tmp_path / "results"))
    assert done.returncode == 1
    (row,) = only_run(tmp_path / "results").rows
    assert row.status == "not run"
    assert row.reason is not None
    assert "no reference" in row.reason


def test_a_model_that_cannot_be_fetched_is_not_run(tmp_path: Path) -> None:
    arguments = ("validate", "--model", "hf/nobody/nothing", "--results", str(tmp_path / "results"))
    done = mlos(tmp_path, *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    (row,) = only_run(tmp_path / "results").rows
    assert row.status == "not run"
    assert row.reason is not None
    assert "network" in row.reason


def test_a_file_that_cannot_be_packaged_fails(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    arguments = ("--model", f"file:{tmp_path}/model.onnx", "--results", str(tmp_path / "results"))
    done = mlos(tmp_path / "home", "validate", *arguments)
    assert done.returncode == 1
    (row,) = only_run(tmp_path / "results").rows
    assert (row.status, gates(row)) == ("failed", {"install": "failed"})


def command(process: psutil.Process) -> list[str]:
    """What a process was started as; nothing, if it has ended since it was seen."""
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ended_early_it_ends_the_server_and_keeps_what_it_found(
    package: Package, home: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [MLOS, "validate", "--model", REFERENCE, "--results", str(tmp_path)],
        env=os.environ | {"MLOS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        servers: list[psutil.Process] = []
        while not servers and time.monotonic() < deadline:
            below = psutil.Process(process.pid).children(recursive=True)
            servers = [child for child in below if any("mlos_core" in part for part in command(child))]
            time.sleep(0.05)
        assert servers, "mlos_core was never started"
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert alive == []
    (row,) = only_run(tmp_path).rows
    assert row.status == "not run"
    assert row.reason == "install: interrupted"


def test_a_killed_run_goes_on_and_leaves_no_model_behind(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "results"
    models = [publish(tmp_path / name) for name in ("first", "second")]
    chosen = [word for model in models for word in ("--model", f"file:{model}")]
    arguments = ("validate", *chosen, "--results", str(folder))
    with subprocess.Popen(
        [MLOS, *arguments],
        env=os.environ | {"MLOS_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any(line.startswith("[2/2]") for line in process.stderr), (
                "the second model was never reached"
            )
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    done = mlos(home, *arguments)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 models are done" in done.stderr
    assert [(row.name, row.status) for row in only_run(folder).rows] == [
        ("first", "passed"),
        ("second", "passed"),
    ]
    assert not list(folder.glob(".unfinished*"))
    assert Store(home / "store").packages() == []


def test_the_plan_is_shown_as_programs_read_it(tmp_path: Path) -> None:
    done = mlos(tmp_path, "validate", "--weights", "small", "--dry-run", "--output", "json", HF_HUB_OFFLINE="1")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert {"name", "reference", "task"} <= rows[0].keys()
    assert REFERENCE in {row["reference"] for row in rows}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--tier", "brief"], 2, "smoke, release, record"),
        (["--weights", "stolen"], 2, "stolen"),
        (["--models", "nobody"], 3, "nobody"),
        (["--model", "hf/a/b/c/d"], 2, "reference"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_runs(
    tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    done = mlos(tmp_path, "validate", *arguments, "--results", str(tmp_path / "results"))
    assert done.returncode == status
    assert said in done.stderr
    assert not (tmp_path / "results").exists()


def test_a_report_is_drawn_from_results(passing: tuple[Run, str, Path], tmp_path: Path) -> None:
    run, _, folder = passing
    done = mlos(tmp_path, "report", str(folder), "--out", str(tmp_path / "page.html"), "--output", "json")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert run.run in page
    assert "smoke: no claim" in page
