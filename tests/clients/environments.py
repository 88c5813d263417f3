"""Environments of their own for clients that cannot live in ours, made once and kept in the user's cache.

``NAME.txt`` beside this file pins all that an environment holds; its folder is named by what that says, so that
a change of it makes another.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_FLAGS = ("--no-input", "--only-binary", ":all:", "--no-deps", "--no-compile", "--retries", "1")
"""What is pinned is all of it: nothing is built, and nothing is resolved again."""
_NO_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|is unreachable"
)


def cached(name: str) -> Path:
    """Where the environment of that name is kept."""
    pinned = (Path(__file__).parent / f"{name}.txt").read_bytes()
    key = hashlib.sha256(pinned + str(sys.implementation.cache_tag).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "mlos" / "clients" / f"{name}-{key}"


def environment(name: str) -> Path:
    """The environment of that name, made if it is not there; skips the test where pip reaches no index."""
    folder = cached(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, Path(__file__).parent / f"{name}.txt")
            (folder / "complete").touch()
    return folder


def _make(folder: Path, pinned: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    command: list[str | Path] = [folder / "bin" / "python", "-m", "pip", "install", *_FLAGS, "-r", pinned]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if done.returncode:
        shutil.rmtree(folder)
        if _NO_NETWORK.search(done.stderr + done.stdout):
            pytest.skip(f"{pinned.name} cannot be installed: pip reaches no package index from here")
        pytest.fail(f"pip cannot install {pinned.name}:\n{done.stderr[-3000:]}")
