"""Loading and starting, with and without settings (acceptance 4 and 7); faults are in ``tests/faults``."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import ROW, run, slowly, workers_of

from mlos.store import Store


def test_concurrent_first_requests_share_one_load(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status for answer in pool.map(lambda _: server.infer("double", ROW), range(8))} == {200}
    server.wait_for(lambda: bool(server.lines()))
    assert sum(line["message"] == "model ready" for line in server.lines()) == 1


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


def test_a_failed_model_leaves_no_process(start: Start, store: Store) -> None:
    packages.flip_byte(packages.double(store))
    server = start()
    assert server.infer("double", ROW).status == 422
    server.wait_for(lambda: workers_of(server) == 0)
