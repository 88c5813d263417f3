"""With ``--tune first-load`` a model without a record is tuned before it is served; without it, never."""

from __future__ import annotations

import io
import re
import shutil
import signal
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from tests.core import packages, records
from tests.core.conftest import Json, Server, Start
from tests.core.handling import ROW, administer, alive, run, workers_of
from tests.small import Small

from mlos.host.environment import record
from mlos.host.process import children_of
from mlos.store import InstallRecord, Package, Store
from mlos.tune import chosen, load
from mlos.tune.record import path_of, save
from mlos.tune.tuner import PAIRS


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


TUNE = ("--tune", "first-load")
IMAGE = {"image": b64encode(png()).decode()}
ODD = """
import sys
import time

from mlos.engines.onnxruntime import OnnxRuntimeEngine

if "tune/child" in sys.argv[0]:
    {what}


class Odd(OnnxRuntimeEngine):
    name = "odd"
"""


@pytest.fixture
def package(store: Store, small: Small) -> Package:
    return small.install("resnet", store)


@pytest.fixture
def temporary(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the server and its children put temporary files."""
    folder = home / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def odd_engine(home: Path, what: str) -> None:
    """Install an engine whose module does ``what`` in the child that measures, and is well elsewhere."""
    described = home / "modules" / "odd-1.dist-info"
    described.mkdir(parents=True)
    (home / "modules" / "odd.py").write_text(ODD.format(what=what))
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.engines.v1]\nodd = odd:Odd\n")


def endless(home: Path) -> None:
    """Let a tuning go on for ever."""
    odd_engine(home, "time.sleep(3600)")


def another(store: Store, package: Package, name: str) -> Package:
    """The same model once more, as a package of its own."""
    manifest = package.manifest.model_copy(update={"name": name, "reference": f"seeded/tiny/{name}@0"})
    with store.staging() as staging:
        shutil.copytree(package.folder, staging.folder, dirs_exist_ok=True)
        for extra in {path.name for path in staging.folder.iterdir()} - {
            entry.path.partition("/")[0] for entry in manifest.files
        }:
            (staging.folder / extra).unlink()
        return store.commit(staging, manifest, InstallRecord(installed_at=datetime.now(UTC), axon="0"))


def said(server: Server, message: str) -> list[Json]:
    return [line for line in server.lines() if line["message"] == message]


def explained(server: Server, model: str) -> tuple[str, str]:
    row = server.row(model)
    return row["state"], row["reason"] or ""


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended meanwhile
        return ""


def measured(server: Server) -> tuple[int, ...]:
    """The process that tunes and its child that measures, as soon as there is one."""
    found: tuple[int, ...] = ()

    def measuring() -> bool:
        nonlocal found
        found = tuple(
            number
            for tuner in children_of(server.process.pid)
            if "mlos.core.tuning" in command(tuner)
            for child in children_of(tuner)
            if re.search(r"tune[./]child", command(child))  # it also asks others what this host is
            for number in (tuner, child)
        )
        return bool(found)

    server.wait_for(measuring)
    return found


def gone(pids: tuple[int, ...], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(alive, pids))


def test_a_server_that_was_not_told_to_tunes_nothing(start: Start, home: Path, package: Package) -> None:
    endless(home)
    server = start()
    assert server.infer("resnet", IMAGE).status == 200
    (row,) = server.get("/version").json["models"]
    assert row["chosen"] == "the default engine: not tuned on this host (axon tune resnet)"
    assert not (home / "tuning").exists()
    assert not said(server, "model is being tuned")
    assert "/scipy/" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_model_is_tuned_once_and_served_by_its_record(
    start: Start, store: Store, home: Path, temporary: Path, package: Package
) -> None:
    server = start(*TUNE)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.infer, "resnet", IMAGE)
        server.wait_for(
            lambda: (
                explained(server, "resnet")
                == ("LOADING", "is being tuned on this host: onnxruntime fp32, 1 thread")
            )
        )
        assert server.get("/health").status == 200
        assert server.get("/v2/health/ready").status == 200  # it has no names to be ready
        assert asked.result().status == 200, asked.result().body
    tuning = load(home, record().id, package.digest)
    assert tuning is not None
    assert {trial.candidate.engine for trial in tuning.trials} >= {"onnxruntime", "openvino"}
    assert tuning.default.ratio is not None
    assert tuning.default.ratio.n == PAIRS
    choice = chosen(package, [], tuning, "fp32", threads=1, fixed_threads=True)
    row = server.row("resnet")
    assert row["state"] == "READY"
    assert row["chosen"] == choice.reason
    assert row["chosen"].startswith("tuned on this host at ")
    assert row["engine"].startswith(choice.candidate.engine)
    (version,) = server.get("/version").json["models"]
    assert version["chosen"] == choice.reason
    assert len(said(server, "model tuned")) == 1
    # What measures is another process, which has ended and left nothing.
    assert "/scipy/" not in Path(f"/proc/{server.process.pid}/maps").read_text()
    assert workers_of(server) == 1
    server.stop()
    assert list(temporary.iterdir()) == []
    endless(home)
    again = start(*TUNE)
    assert again.infer("resnet", IMAGE).status == 200
    assert again.row("resnet")["chosen"] == choice.reason
    assert not said(again, "model is being tuned")


def test_a_record_that_is_not_believed_is_no_record(start: Start, home: Path, package: Package) -> None:
    believed = records.write(home, package, "openvino")
    save(home, believed.model_copy(update={"engines": {**believed.engines, "openvino": "2020.1"}}))
    odd_engine(home, "raise RuntimeError('no more')")
    server = start(*TUNE)
    assert server.infer("resnet", IMAGE).status == 200
    (line,) = said(server, "model is being tuned")
    assert line["why"].startswith("tuned with openvino 2020.1, installed is 202")
    chose = server.row("resnet")["chosen"]
    assert chose.startswith("the default engine: tuned with openvino 2020.1, installed is 202")
    assert "its first load could not tune it: mlos.tune.child failed: RuntimeError: no more" in chose
    server.stop()
    path_of(home, record().id, package.digest).write_text("{")
    other = start(*TUNE)  # as it cannot be tuned anew, what is wrong with the record is told as ever
    assert other.infer("resnet", IMAGE).error["hint"] == "tune the model again: axon tune"
    (line,) = said(other, "model is being tuned")
    assert "cannot be read" in line["why"]


def test_what_cannot_be_tuned_is_served_and_not_tried_again(
    start: Start, store: Store, home: Path, package: Package
) -> None:
    packages.double(store)
    odd_engine(home, "raise RuntimeError('no more')")
    server = start(*TUNE)
    answer = server.infer("double", ROW)
    assert (answer.status, answer.json["result"]) == (200, {"y": [[2, 4, 6]]})
    assert "double is served as it came: without a golden record" in server.row("double")["chosen"]
    assert not said(server, "model is being tuned")
    for _ in range(2):
        assert server.infer("resnet", IMAGE).status == 200
        assert administer(server, "unload", "resnet").status == 200
        assert administer(server, "load", "resnet").status == 200
    chose = server.row("resnet")["chosen"]
    assert chose.startswith(
        "the default engine: not tuned on this host (axon tune resnet); its first load could"
    )
    assert "RuntimeError: no more" in chose
    server.wait_for(lambda: len(said(server, "model cannot be tuned: it is served untuned")) == 2)
    assert len(said(server, "model is being tuned")) == 1


def test_without_scipy_models_are_served(start: Start, home: Path, package: Package) -> None:
    (home / "modules").mkdir()
    (home / "modules" / "scipy.py").write_text("raise ImportError('none here')")
    server = start(*TUNE)
    assert server.infer("resnet", IMAGE).status == 200
    (line,) = said(server, "model cannot be tuned: it is served untuned")
    assert line["reason"] in server.row("resnet")["chosen"]
    assert "needs the extra 'validate'" in line["reason"]
    assert line["hint"] == "pip install 'mlos[validate]'"


def test_a_tuning_that_finds_no_room_is_left_out(start: Start, home: Path, package: Package) -> None:
    endless(home)
    budget = (96 << 20) + 2 * package.manifest.size  # for a worker, not for the two engines of a tuning
    server = start(*TUNE, "--memory-budget", str(budget))
    assert server.infer("resnet", IMAGE).status == 200
    assert "resnet (tuning) needs about" in server.row("resnet")["chosen"]


def test_requests_that_wait_for_a_tuning_keep_their_deadlines(
    start: Start, home: Path, package: Package
) -> None:
    endless(home)
    server = start(*TUNE, "--request-timeout", "1", "--load-timeout", "1")
    answer = server.infer("resnet", IMAGE)
    assert (answer.status, answer.error["code"]) == (504, "deadline")
    measured(server)
    time.sleep(1.2)  # beyond what loading may take
    assert explained(server, "resnet")[0] == "LOADING"


def test_unloading_ends_what_is_measured_and_answers_what_waits(
    start: Start, store: Store, home: Path, temporary: Path, package: Package
) -> None:
    endless(home)
    server = start(*TUNE)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.infer, "resnet", IMAGE)
        pids = measured(server)
        assert administer(server, "unload", "resnet").status == 200
        answer = asked.result()
    assert (answer.status, answer.json["engine"]) == (200, "onnxruntime")
    assert gone(pids)
    assert explained(server, "resnet")[0] == "STOPPED"
    assert workers_of(server) == 0
    assert list(temporary.iterdir()) == []
    # It was not tuned, and nothing kept it from being tuned: the next load begins again. Nobody waits now.
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(administer, server, "load", "resnet")
        pids = measured(server)
        assert administer(server, "unload", "resnet").status == 200
        assert loaded.result().status == 503
    assert gone(pids)
    assert workers_of(server) == 0
    assert list(temporary.iterdir()) == []
    assert not (home / "tuning").exists()


def test_models_are_tuned_one_at_a_time(start: Start, store: Store, home: Path, package: Package) -> None:
    another(store, package, "second")
    endless(home)
    server = start(*TUNE, "--model", "resnet", "--model", "second")
    first = measured(server)
    server.wait_for(lambda: len(said(server, "model is being tuned")) == 1)
    waits = ("LOADING", "waits until another model has been tuned on this host")
    rows = {name: explained(server, name) for name in ("resnet", "second")}
    assert sorted(rows.values())[1] == waits
    (begun,) = (name for name, row in rows.items() if row != waits)
    ready = server.get("/v2/health/ready")
    assert ready.status != 200
    assert b"loading" in ready.body
    assert measured(server) == first
    assert administer(server, "unload", begun).status == 200
    assert gone(first)
    server.wait_for(lambda: len(said(server, "model is being tuned")) == 2)
    assert len(measured(server)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_the_server_ends_what_is_measured(
    start: Start, home: Path, temporary: Path, package: Package, number: signal.Signals
) -> None:
    endless(home)
    server = start(*TUNE)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.infer, "resnet", IMAGE)
        pids = measured(server)
        began = time.monotonic()
        assert server.stop(number) == (0 if number == signal.SIGTERM else -number)
        if number == signal.SIGTERM:  # what was accepted is answered, long before the draining is cut off
            assert asked.result().status == 200
            assert time.monotonic() - began < 25
            assert list(temporary.iterdir()) == []
        else:
            assert asked.exception() is not None
    assert gone(pids)


def test_what_nobody_knows_is_refused_at_start(home: Path) -> None:
    ended = run(home, "--port", "0", "--tune", "always")
    assert ended.returncode == 2
    assert "setting tune" in ended.stderr
