"""T19: what a compromised engine tries, it gets EPERM or EACCES for, and goes on computing on its own files."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.host.conftest import CHILDREN

from mlos.errors import NotFoundError
from mlos.host import landlock
from mlos.host.sandbox import Policy, confine


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A TCP and a Unix server to connect to, a canary outside, and a link to it inside."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "canary").write_text("sings")
    (outside / "victim").write_text("lives")
    (inside / "link").symlink_to(outside / "canary")
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        unix.listen()
        yield {
            "inside": str(inside),
            "outside": str(outside),
            "port": tcp.getsockname()[1],
            "unix": str(tmp_path / "socket"),
        }


def test_every_attack_fails_inside(scene: dict[str, Any], run: Callable[..., dict[str, Any]]) -> None:
    found = run("attacks", Policy(read=(Path(scene["inside"]),)), **scene)
    assert {name: got for name, got in found.items() if got not in ("EPERM", "EACCES")} == {}
    outside = Path(scene["outside"])
    assert sorted(path.name for path in outside.iterdir()) == ["canary", "victim"]
    assert (outside / "canary").read_text() == "sings"


def test_every_attack_succeeds_outside(scene: dict[str, Any]) -> None:
    # The control: were the sandbox to do nothing, the test above would see this.
    done = subprocess.run(
        [sys.executable, CHILDREN / "attacks.py", "free"],
        input=json.dumps(scene),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {name: got for name, got in found.items() if got != "done"} == {}
    assert len(found) > 15


def test_work_goes_on_inside(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    package, scratch = tmp_path / "package", tmp_path / "scratch"
    package.mkdir()
    scratch.mkdir()
    (package / "weights").write_text("numbers")
    found = run(
        "behaviours",
        Policy(read=(package,), write=(scratch,)),
        do="numpy",
        read=str(package),
        write=str(scratch),
    )
    assert found == {"trace": 256.0 * 256.0, "text": "numbers"}
    assert (scratch / "made" / "answer").read_text() == "numbers"


def test_what_may_be_read_may_not_be_written(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    (tmp_path / "weights").write_text("numbers")
    with pytest.raises(Exception, match="PermissionError"):
        run("behaviours", Policy(read=(tmp_path,)), do="numpy", read=str(tmp_path), write=str(tmp_path))


@pytest.mark.slow
def test_a_conversion_runs_inside(tmp_path: Path, run: Callable[..., dict[str, Any]]) -> None:
    absent = [name for name in ("torch", "transformers", "onnxscript", "onnxruntime") if not find_spec(name)]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    policy = Policy(write=(tmp_path,), memory_bytes=8 << 30, file_bytes=1 << 30, open_files=1024)
    found = run("export", policy, folder=str(tmp_path), timeout=200)
    assert found["error"] < 1e-5 < found["spread"]


def test_landlock_holds_where_libseccomp_is_missing(
    tmp_path: Path, scene: dict[str, Any], run: Callable[..., dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    stand_in = tmp_path / "stand-in"
    stand_in.mkdir()
    (stand_in / "pyseccomp.py").write_text("raise RuntimeError('Unable to find libseccomp')")
    path = os.pathsep.join(map(str, (stand_in, CHILDREN)))
    with caplog.at_level(logging.WARNING):
        found = run("attacks", env={"PYTHONPATH": path}, **scene)
    assert "lacks seccomp: libseccomp.so.2 cannot be loaded" in caplog.text
    refused = {name for name, got in found.items() if got in ("EPERM", "EACCES")}
    assert {"write outside", "list outside", "subprocess", "posix_spawn"} <= refused
    if landlock.abi() >= 4:
        assert {"connect", "listen"} <= refused
    if landlock.abi() >= 6:
        assert "signal the parent" in refused


_WITHOUT_LANDLOCK = """
import errno, json, socket, sys
import pyseccomp
rules = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
rules.add_rule(pyseccomp.ERRNO(errno.ENOSYS), 444)
rules.load()
from mlos.host.sandbox import Policy, confine
found = confine(Policy())
try:
    socket.socket()
except PermissionError:
    print(json.dumps([found.applied, found.missing]))
"""


def test_seccomp_holds_where_the_kernel_has_no_landlock() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_LANDLOCK], capture_output=True, text=True, check=True)
    applied, missing = json.loads(done.stdout)
    assert "seccomp" in applied
    assert "landlock" not in applied
    assert os.strerror(errno.ENOSYS) in missing["landlock"]


_WITH_A_THREAD = """
import threading, time
threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
from mlos.host.sandbox import Policy, confine
print(confine(Policy()).missing["landlock.threads"])
"""


def test_threads_that_landlock_cannot_reach_are_told() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_A_THREAD], capture_output=True, text=True, check=True)
    assert done.stdout == "1 threads were started before and keep their rights to files\n"


def test_a_path_that_is_not_there_is_named_and_nothing_is_confined(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        confine(Policy(read=(tmp_path / "absent",)))
    (tmp_path / "still writable").write_text("")
