"""F05: ``kill -9`` of an install at any moment leaves no half package, and the next install succeeds."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.axon.conftest import AXON, answer, keep, work_left

from mlos.store import Store


def kill_at(reference: str, seconds: float) -> bool:
    """Start an install and kill it, its own process only, after ``seconds``; whether it was still running."""
    command = [str(AXON), "install", reference]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        running.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        return True
    return False


def survive(reference: str, kills: int, seconds: float, home: Path) -> None:
    """Kill ``kills`` installs that take ``seconds``, spread over all of it; check after each."""
    store = home / "store"
    installed = Store(store)
    kept = keep(installed, home.parent)
    chance = random.Random(5)  # a seed: the moments differ anyway, by the machine's load
    killed = 0
    for index in range(kills):
        killed += kill_at(reference, seconds * (index + chance.random()) / kills)
        packages = installed.packages()
        assert installed.broken() == []
        assert packages[-1].digest == kept.digest
        assert not any(installed.verify(package) for package in packages)
        if len(packages) == 2:  # it got through: begin again with nothing of it
            installed.remove(packages[0].digest)
    assert killed >= (kills + 1) // 2
    result = answer("install", reference)
    assert work_left(store) == []
    assert [package["digest"] for package in answer("list")] == [result["digest"], kept.digest]
    assert answer("verify")["sound"] is True
    answer("gc")
    assert work_left(store) == []
    assert answer("verify")["sound"] is True


def length(made: tuple[dict[str, Any], Path], more: float) -> float:
    """Seconds that such an install takes here: its stages as measured, the program's start, and ``more``."""
    return float(sum(made[0]["seconds"].values())) + 1.0 + more


def test_three_kills(made: tuple[dict[str, Any], Path], tiny_bert: Path, tmp_path: Path) -> None:
    survive(f"file:{tiny_bert}", 3, length(made, 0.0), tmp_path / "home")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    survive("seeded/tiny/bert", 20, length(made, 5.0), tmp_path / "home")


@pytest.mark.soak
@pytest.mark.timeout(14400)
def test_f05_two_hundred_kills(made: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    survive("seeded/tiny/bert", 200, length(made, 5.0), tmp_path / "home")
