"""Loading, dying, draining, and following the store (F04, F14, F15, F18-F20; acceptance 4 and 7)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.core import packages
from tests.core.conftest import Answer, Server, Start, environment

from mlos.store import Store

ROW = {"inputs": {"x": [[1, 2, 3]]}}


def slowly(n: int) -> dict[str, object]:
    """About ``2 n`` milliseconds of work for the slow model."""
    return {"inputs": {"n": n, "x": [1]}}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_empty_server_is_live_and_not_ready_until_something_is_installed(start: Start, store: Store) -> None:
    server = start()
    assert server.get("/v2/health/live").status == 200
    answer = server.get("/v2/health/ready")
    assert (answer.status, answer.json["reason"]) == (503, "no model is installed")
    assert server.infer("double", ROW).status == 404
    packages.double(store)
    assert server.get("/v2/health/ready").status == 200
    assert server.infer("double", ROW).status == 200
    store.remove("double")
    assert server.infer("double", ROW).status == 404
    assert server.get("/v2/health/ready").status == 503
    worker = server.worker("double")
    server.wait_for(lambda: not alive(worker))


def test_concurrent_first_requests_share_one_load(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: server.infer("double", ROW), range(8))} == {200}
    server.wait_for(lambda: bool(server.lines()))
    assert sum(line["message"] == "model ready" for line in server.lines()) == 1


def test_a_model_named_at_start_loads_then_and_the_others_are_not_served(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    server = start("--model", "hf/tests/double")
    reasons = set()

    def ready() -> bool:
        answer = server.get("/v2/health/ready")
        reasons.add(answer.json["reason"])
        return answer.status == 200

    server.wait_for(ready)
    assert "model double is loading: loading" in reasons
    assert [row["id"] for row in server.get("/v1/models").json["data"]] == ["double"]
    answer = server.infer("slow", slowly(1))
    assert answer.status == 404
    assert "started for: double" in answer.error["message"]


def test_a_corrupt_package_is_refused_with_the_reason_until_it_is_installed_again(
    start: Start, store: Store
) -> None:
    packages.flip_byte(packages.double(store))
    packages.embedder(store)
    server = start("--model", "double", "--model", "embedder")
    server.wait_for(lambda: server.row("double")["state"] == "FAILED")
    assert "model.onnx" in server.row("double")["reason"]
    answer = server.infer("double", ROW)
    assert (answer.status, answer.error["code"], answer.error["field"]) == (422, "corrupt", "model.onnx")
    assert answer.error["hint"].startswith("axon install")
    ready = server.get("/v2/health/ready")
    assert ready.status == 503
    assert "double" in ready.json["reason"]
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    packages.double(store)
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)
    assert server.infer("double", ROW).status == 200


def test_a_killed_worker_costs_the_other_model_nothing_and_is_replaced(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    assert server.infer("slow", slowly(1)).status == 200
    victim = server.worker("slow")
    over = threading.Event()
    answers: dict[str, list[Answer]] = {"double": [], "slow": []}

    def load(model: str, request: dict[str, object]) -> None:
        while not over.is_set():
            answers[model].append(server.infer(model, request))

    clients = [threading.Thread(target=load, args=("double", ROW)) for _ in range(2)]
    clients += [threading.Thread(target=load, args=("slow", slowly(20))) for _ in range(4)]
    for client in clients:
        client.start()
    server.wait_for(lambda: len(answers["slow"]) > 4)
    os.kill(victim, signal.SIGKILL)
    server.wait_for(lambda: server.worker("slow") != victim)
    after = len(answers["slow"])
    server.wait_for(lambda: len(answers["slow"]) > after + 4)
    over.set()
    for client in clients:
        client.join()
    assert {answer.status for answer in answers["double"]} == {200}
    lost = [answer for answer in answers["slow"] if answer.status != 200]
    assert len(lost) <= 1
    for answer in lost:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "ended while it computed" in answer.error["message"]
    assert answers["slow"][-1].status == 200
    assert server.metric("mlos_restarts_total", model="slow") == 1


def test_a_crash_loop_ends_in_failed_with_the_reason(start: Start, store: Store) -> None:
    packages.double(store)
    packages.embedder(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    seen: set[int] = set()
    turned_away: list[Answer] = []

    def failed() -> bool:
        row = server.row("double")
        if row["state"] == "READY" and (worker := server.worker("double")) not in seen:
            seen.add(worker)
            os.kill(worker, signal.SIGKILL)
        if row["state"] == "RESTARTING" and len(seen) > 1:
            answer = server.infer("double", ROW)
            if answer.status == 503:
                turned_away.append(answer)
        return bool(row["state"] == "FAILED")

    server.wait_for(failed, 60)
    assert len(seen) == 5
    assert "5 workers in a row" in server.row("double")["reason"]
    assert "SIGKILL" in server.row("double")["reason"]
    assert turned_away
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in turned_away)
    assert server.infer("double", ROW).status == 503
    assert server.infer("embedder", {"text": "mlos"}).status == 200


def test_a_worker_that_hangs_is_ended_and_replaced(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--request-timeout", "2")
    assert server.infer("double", ROW).status == 200
    hung = server.worker("double")
    os.kill(hung, signal.SIGSTOP)
    assert server.infer("double", ROW).status == 504
    server.wait_for(lambda: not alive(hung))
    server.wait_for(lambda: server.infer("double", ROW).status == 200)
    assert any("overran" in str(line.get("reason")) for line in server.lines())


def test_a_deadline_is_kept_queued_or_running_and_expired_work_is_never_started(
    start: Start, store: Store
) -> None:
    packages.slow(store)
    server = start("--request-timeout", "3")
    assert server.infer("slow", slowly(1)).status == 200
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: server.infer("slow", slowly(n)), (4000, 4000, 4000)))
    assert [answer.status for answer in answers] == [504] * 3
    where = sorted("queue" in answer.error["message"] for answer in answers)
    assert where == [False, True, True]
    # Two never started: the worker is soon free again, or was ended for overrunning.
    server.wait_for(lambda: server.infer("slow", slowly(1)).status == 200)
    assert server.metric("mlos_stage_seconds_count", model="slow", stage="compute") == 2


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_soon_and_cleanly(start: Start, store: Store, number: int) -> None:
    packages.double(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    worker = server.worker("double")
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < 2  # the promise of F04, far above what it takes
    assert not alive(worker)
    assert "worker died" not in server.log.read_text()


def test_a_server_ends_while_a_model_loads(start: Start, store: Store) -> None:
    packages.double(store)
    assert start("--model", "double").stop() == 0


def test_what_is_in_flight_is_answered_while_the_server_drains(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "slow", slowly(500))
        server.wait_for(lambda: server.metric("mlos_in_flight") == 1)
        # As an init system does it: every process of the group gets the signal.
        os.kill(server.worker("slow"), signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert "draining" in server.get("/v2/health/ready").json["reason"]
        refused = server.infer("slow", slowly(1))
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        assert running.result().status == 200
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_now(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    worker = server.worker("slow")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "slow", slowly(5000))
        server.wait_for(lambda: server.metric("mlos_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.stop() == 128 + signal.SIGTERM
        with pytest.raises(OSError):
            running.result()
    server.wait_for(lambda: not alive(worker))


def test_workers_die_with_a_server_that_is_killed(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    worker = server.worker("slow")
    server.process.kill()
    server.wait_for(lambda: not alive(worker))


def run(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlos.core.cli", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=120)


def test_a_port_in_use_is_a_clear_error(start: Start, home: Path) -> None:
    server = start()
    ended = run(home, "--port", str(server.port))
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert f"port {server.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_bind_beyond_loopback_is_refused_unless_asked_for(home: Path) -> None:
    for host in ("0.0.0.0", "::", "example.invalid"):
        ended = run(home, "--port", "0", "--host", host)
        assert ended.returncode == 2
        assert "--allow-remote" in ended.stderr


def test_a_wrong_setting_is_named(home: Path) -> None:
    ended = run(home, "--port", "70000")
    assert ended.returncode == 2
    assert "port" in ended.stderr


def test_a_model_that_cannot_be_installed_ends_the_server_with_axons_status(home: Path, tmp_path: Path) -> None:
    ended = run(home, "--port", "0", "--model", f"file:{tmp_path}/nothing.onnx")
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert "nothing.onnx" in ended.stderr


def test_settings_come_from_file_environment_and_flags(home: Path, start: Start, store: Store) -> None:
    packages.slow(store)
    (home / "config.toml").write_text("request_timeout = 1.5\n")
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    answer = server.infer("slow", slowly(2500))
    assert answer.status == 504
    assert "1.5 s" in answer.error["message"]


def test_the_version_is_shown(home: Path) -> None:
    assert run(home, "--version").stdout.startswith("mlos_core ")


def workers_of(server: Server) -> int:
    return len(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split())


def test_a_failed_model_leaves_no_process(start: Start, store: Store) -> None:
    packages.flip_byte(packages.double(store))
    server = start()
    assert server.infer("double", ROW).status == 422
    server.wait_for(lambda: workers_of(server) == 0)
