from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlos.errors import DeadlineError, NoRoomError, RefusedError, WorkerError
from mlos.host.sandbox import Policy

CHILDREN = Path(__file__).parent / "children"
Run = Callable[..., dict[str, Any]]


def ended(pidfd: int, within: float = 20) -> bool:
    return bool(select.select([pidfd], [], [], within)[0])


def test_answers_although_libraries_print(run: Run) -> None:
    large = "ä" * 300_000  # more than the pipes hold, both ways
    assert run("behaviours", do="echo", say=large) == {"heard": large}


def test_events_arrive_in_order(run: Run) -> None:
    events: list[dict[str, Any]] = []
    assert run("behaviours", do="events", count=100, on_event=events.append) == {}
    assert events == [{"number": number} for number in range(100)]


def test_inherits_no_secrets_and_a_home_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HTTPS_PROXY", "MLOS_HOME"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = run("behaviours", do="describe", env={"EXTRA": "given"})
    environment = found["environment"]
    assert "secret" not in environment.values()
    assert (environment["OMP_NUM_THREADS"], environment["EXTRA"]) == ("1", "given")
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["HOME"] == environment["TMPDIR"] == environment["XDG_CACHE_HOME"] == found["cwd"]
    assert not Path(found["cwd"]).exists()
    assert found["stdin"] == ""


def test_the_private_folder_lies_where_the_child_may_write(run: Run, tmp_path: Path) -> None:
    found = run("behaviours", Policy(write=(tmp_path,)), do="describe")
    assert Path(found["cwd"]).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_an_error_raised_on_purpose_comes_back_whole_and_harmless(run: Run) -> None:
    with pytest.raises(RefusedError) as caught:
        run("behaviours", do="refuse")
    assert caught.value.as_dict() == {
        "code": "refused",
        "message": "no ?[31mred",
        "field": "f",
        "expected": "e",
        "got": "g",
        "hint": "try another",
    }


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        ({"do": "raise"}, "behaviours failed: ValueError: three is not four", "in main"),
        ({"do": "nan"}, "behaviours failed: ValueError: Out of range float values", "nan"),
        ({"do": "crash"}, "behaviours was ended by SIGSEGV", "Segmentation fault"),
        ({"do": "kill"}, "behaviours was ended by SIGKILL, as the kernel does where memory runs out", None),
        ({"do": "exit", "status": 3}, "behaviours ended with status 3", None),
        ({"do": "exit", "status": 0}, "behaviours ended without a result", None),
        ({"do": "garbage", "bytes": "{"}, "behaviours sent a line that is not JSON", None),
        ({"do": "garbage", "bytes": "[" * 100_000}, "behaviours sent a line that is not JSON", None),
        ({"do": "garbage", "bytes": '{"result": 1}'}, "sent what is not in the protocol", None),
        ({"do": "garbage", "bytes": '{"result": {}}'}, "sent what is not in the protocol", None),
    ],
)
def test_a_failure_says_what_happened(
    run: Run, request_: dict[str, Any], message: str, hint: str | None
) -> None:
    with pytest.raises(WorkerError) as caught:
        run("behaviours", **request_)
    assert message in caught.value.message
    if hint:
        assert hint in (caught.value.hint or "")


def test_a_module_that_is_not_there(run: Run) -> None:
    with pytest.raises(WorkerError, match="No module named nowhere"):
        run("nowhere")


def test_more_memory_than_allowed(run: Run) -> None:
    with pytest.raises(NoRoomError, match=f"its limit is {256 << 20} bytes of memory"):
        run("behaviours", Policy(memory_bytes=256 << 20), do="memory", bytes=512 << 20)
    assert run("behaviours", Policy(memory_bytes=256 << 20), do="memory", bytes=1 << 20) == {"bytes": 1 << 20}


def test_native_code_out_of_memory(run: Run) -> None:
    with pytest.raises(NoRoomError, match="was ended by SIGABRT; its limit is 1073741824 bytes of memory"):
        run("behaviours", Policy(memory_bytes=1 << 30), do="abort")


def test_a_larger_file_than_allowed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # its data file would be cut off as well
    with pytest.raises(NoRoomError, match="its limit is 1000 bytes a file"):
        run("behaviours", Policy(file_bytes=1000), do="file", bytes=2000)


def test_more_processor_time_than_allowed(run: Run) -> None:
    with pytest.raises(DeadlineError, match="used up its 1 s of processor time"):
        run("behaviours", Policy(cpu_seconds=1), do="spin")


@pytest.mark.parametrize("do", ["sleep", "close"])
def test_longer_than_the_time_out(run: Run, do: str) -> None:
    with pytest.raises(DeadlineError, match="did not finish within 2 s"):
        run("behaviours", do=do, timeout=2)


def test_an_interrupted_parent_ends_its_child(run: Run) -> None:
    children: list[int] = []

    def interrupt(event: dict[str, Any]) -> None:
        children.append(os.pidfd_open(event["pid"]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("behaviours", do="sleep", on_event=interrupt)
    assert ended(children[0], within=0)
    os.close(children[0])


_PARENT = """
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy
run_confined(
    "behaviours", {"do": "sleep"}, Policy(), timeout=60, env={"PYTHONPATH": CHILDREN},
    on_event=lambda event: print(event["pid"], flush=True),
)
"""


def test_a_killed_parent_takes_its_child_along(tmp_path: Path) -> None:
    code = _PARENT.replace("CHILDREN", repr(str(CHILDREN)))
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        assert not ended(child, within=0)
        parent.send_signal(signal.SIGKILL)
        assert ended(child)
        os.close(child)


def test_coverage_reaches_into_the_sandbox(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    data = tmp_path / "coverage" / "data"
    (tmp_path / "coveragerc").write_text(f"[run]\ndata_file={data}\nparallel=true\nsource_pkgs=mlos.host\n")
    monkeypatch.setenv("COVERAGE_PROCESS_START", str(tmp_path / "coveragerc"))
    run("behaviours", do="echo", say="measured")
    assert len(list(data.parent.glob("data.*"))) == 1
