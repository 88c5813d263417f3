"""The programs under validation, run as a user runs them: ``axon`` to install, ``mlos_core`` to serve."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from mlos.console import ProgressMode
from mlos.errors import MissingExtraError, MlosError, UnavailableError

INSTALL_SECONDS = 3600.0
START_SECONDS = 60.0
READY_SECONDS = 600.0
STOP_SECONDS = 40.0
_TAIL = 2000
_TOKENS = ("MLOS_TOKEN", "MLOS_ADMIN_TOKEN")
"""Of a server that a person runs: the one that is validated listens on loopback and takes none."""


def program(name: str) -> str:
    """The path of one of our programs: beside this Python, else on the ``PATH``.

    Raises:
        MissingExtraError: if it is nowhere.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MissingExtraError(f"the program '{name}' is not installed", hint="pip install mlos")
    return found


def install(reference: str, progress: ProgressMode) -> dict[str, Any]:
    """Run ``axon install REFERENCE --output json``; its progress is shown as it comes.

    On a terminal its steps are lines, since the terminal is not its own.

    Raises:
        MlosError: what axon said, as the class its exit status means.
    """
    if progress is ProgressMode.AUTO:
        progress = ProgressMode.PLAIN if sys.stderr.isatty() else ProgressMode.NONE
    command = [program("axon"), "install", reference, "--output", "json", "--progress", progress.value]
    with subprocess.Popen(  # noqa: S603  (our own program)
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        said: list[str] = []
        relay = threading.Thread(target=_relay, args=(process, said), daemon=True)
        relay.start()
        stop = threading.Timer(INSTALL_SECONDS, process.kill)
        stop.start()
        try:
            assert process.stdout is not None  # PIPE was asked for
            output = process.stdout.read()
            status = process.wait()
        finally:
            stop.cancel()
            process.kill()
            relay.join()
    if status == 0:
        installed: dict[str, Any] = json.loads(output)
        return installed
    error = next((line for line in reversed(said) if line.startswith('{"error"')), None)
    if error is not None:
        raise MlosError.from_dict(json.loads(error)["error"])
    raise MlosError(f"axon install {reference} ended with status {status}: {''.join(said)[-_TAIL:].strip()}")


def remove(reference: str) -> None:
    """Run ``axon remove`` and ``axon gc``, so that the next model has the room.

    Raises:
        MlosError: if one of them failed, with its last words, or did not end.
    """
    for command in (["remove", reference, "--yes"], ["gc"]):
        try:
            done = subprocess.run(  # noqa: S603  (our own program)
                [program("axon"), *command, "--output", "quiet", "--progress", "none"],
                capture_output=True,
                text=True,
                timeout=START_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise MlosError(f"axon {command[0]} did not end within {START_SECONDS:.0f} s") from error
        if done.returncode != 0:
            raise MlosError(
                f"axon {command[0]} ended with status {done.returncode}: {done.stderr[-_TAIL:].strip()}"
            )


def _relay(process: subprocess.Popen[str], said: list[str]) -> None:
    """Pass axon's progress on to our stderr; keep what it says, and keep its JSON error to ourselves."""
    assert process.stderr is not None  # PIPE was asked for
    for line in process.stderr:
        said.append(line)
        if not line.startswith('{"error"'):
            sys.stderr.write(line)
            sys.stderr.flush()


@dataclass(frozen=True)
class Server:
    """A running ``mlos_core`` with one model, ready. Times are in seconds."""

    url: str
    model: dict[str, Any]
    """The model's row of ``GET /v1/models``."""
    ready_seconds: float
    process: subprocess.Popen[str]
    log: Path

    def now(self) -> dict[str, Any]:
        """The model's row as it stands now.

        Raises:
            UnavailableError: if the server does not list it any more.
        """
        row = next((row for row in _models(self.url) if row.get("digest") == self.model.get("digest")), None)
        if row is None:
            raise UnavailableError("mlos_core does not list the model any more")
        return row

    def served(self) -> dict[str, Any]:
        """What it computes the model with, and why.

        Raises:
            UnavailableError: if the server does not say.
        """
        try:
            told = httpx2.get(f"{self.url}/version", timeout=START_SECONDS, trust_env=False)
            return dict(told.raise_for_status().json()["models"][0])
        except (httpx2.HTTPError, ValueError, LookupError, TypeError) as error:
            raise UnavailableError(f"mlos_core does not say what it serves with: {error!r}") from error

    def stop(self) -> int:
        """Ask the server to drain and wait for its end; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def serving(reference: str, *flags: str) -> Iterator[Server]:
    """``mlos_core --model REFERENCE`` on a free port, ready to answer; ended with the block, come what may.

    ``flags`` are further ones of the program.

    Raises:
        UnavailableError: if it ends or does not become ready, with its reason or its last words.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlos-validate-") as folder:
        log = Path(folder) / "mlos_core.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(  # noqa: S603  (our own program)
                [program("mlos_core"), "--model", reference, "--port", "0", *flags],
                env={name: value for name, value in os.environ.items() if name not in _TOKENS},
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        try:
            url = _listening(process, log)
            _wait_ready(url, process, log)
            ready = time.monotonic() - started
            models = _models(url)
            if not models:
                raise UnavailableError("mlos_core is ready and lists no model")
            yield Server(url, models[0], ready, process, log)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdout is not None  # PIPE was asked for
            process.stdout.close()


def _listening(process: subprocess.Popen[str], log: Path) -> str:
    """The base URL, which is the first line on the server's stdout."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None  # PIPE was asked for
    threading.Thread(
        target=lambda pipe: lines.put(pipe.readline()), args=(process.stdout,), daemon=True
    ).start()
    try:
        line = lines.get(timeout=READY_SECONDS).strip()
    except queue.Empty:
        line = ""
    if not line.startswith("http://"):
        raise UnavailableError(f"mlos_core did not begin to listen: {_last_words(process, log)}")
    return line


def _wait_ready(url: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    reason = "no answer yet"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"mlos_core ended: {_last_words(process, log)}")
        try:
            answer = httpx2.get(f"{url}/v2/health/ready", timeout=START_SECONDS, trust_env=False)
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == httpx2.codes.OK:
                return
            reason = answer.text
            failed = [row for row in _models(url) if str(row.get("state")).upper() == "FAILED"]
            if failed:
                raise UnavailableError(f"{failed[0].get('id')} cannot be served: {failed[0].get('reason')}")
        time.sleep(0.05)  # readiness has no event to wait for over HTTP
    raise UnavailableError(f"mlos_core was not ready after {READY_SECONDS:.0f} s: {reason}")


def _models(url: str) -> list[dict[str, Any]]:
    """The rows of ``GET /v1/models``.

    Raises:
        UnavailableError: if the server does not answer with such a list.
    """
    try:
        answer = httpx2.get(f"{url}/v1/models", timeout=START_SECONDS, trust_env=False)
        rows = answer.raise_for_status().json()["data"]
        return [dict(row) for row in rows]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
        raise UnavailableError(f"mlos_core does not list its models: {error!r}") from error


def _last_words(process: subprocess.Popen[str], log: Path) -> str:
    status = process.poll()
    return f"status {status}; its log ends: {log.read_text(errors='replace')[-_TAIL:].strip()}"
