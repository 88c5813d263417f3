"""Who is compared: MLOS, and each peer of ``benchmarks/peers``; how each is started, asked and ended.

A peer is a folder: ``peer.toml`` says how it is started and asked, ``requirements.txt`` what it is,
``server.py`` is our code for it. What is written there is published with the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx2
import psutil  # type: ignore[import-untyped]  # its stubs are another distribution
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.environments import native_wheel, python_of
from benchmarks.wire import Form
from mlos.errors import NotFoundError, RefusedError, UnavailableError
from mlos.parity import Tolerance, tolerance_named
from mlos.parity.tolerance import TOLERANCES
from mlos.settings import Settings
from mlos.store import Package
from mlos.validation import programs

PEERS = Path(__file__).parent / "peers"
_READY_SECONDS = 180.0
_STOP_SECONDS = 10.0
_TAIL = 2000


class Wire(BaseModel):
    """In which form, and at which address, a side takes requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Form
    path: str


@dataclass(frozen=True)
class Repository:
    """Where a model is loaded and unloaded: ``path`` and a verb, on the Unix ``socket`` if there is one."""

    path: str
    socket: Path | None = None


@dataclass(frozen=True)
class Served:
    """A running server: where it listens, how it is asked, and to what its answers are held."""

    port: int
    wires: Mapping[str, Wire]
    tolerance: Tolerance
    facts: Mapping[str, str]
    repository: Repository | None = None


class Side(Protocol):
    """One of those compared."""

    name: str
    title: str
    ours: bool
    configuration: tuple[str, ...]
    speaks: frozenset[str]
    """The wires by which it can be asked."""

    def prepare(self) -> str:
        """Set up what it needs; what it is made of, in a word.

        Raises:
            MlosError: why it cannot be.
        """
        ...

    def serving(self, package: Package, settings: Mapping[str, Any]) -> AbstractContextManager[Served]:
        """A fresh process, ready; ended with the block.

        Raises:
            UnavailableError: if it ends or does not become ready, with its last words.
        """
        ...


class Mlos:
    """Our own server, as a person starts it."""

    ours = True
    speaks = frozenset({"json", "binary", "text", "openai"})

    def __init__(self, name: str, *flags: str) -> None:
        self.name, self._flags = name, ("--log-level", "warning", *flags)
        self.title = " ".join(("mlos_core", *self._flags))
        self.configuration: tuple[str, ...] = (
            self.title,
            "a line in the log for each request: off, as the peers'",
        )

    def prepare(self) -> str:
        """It is this checkout."""
        from mlos import __version__

        programs.program("mlos_core")
        return f"mlos {__version__}"

    @contextmanager
    def serving(self, package: Package, settings: Mapping[str, Any]) -> Iterator[Served]:
        """``mlos_core --model DIGEST`` on a free port."""
        with programs.serving(package.digest, *self._flags) as server:
            name = server.model["id"]
            precision = str(server.model.get("precision"))
            tolerance = tolerance_named(precision if precision in TOLERANCES else "fp32")
            tensors = f"/v2/models/{name}/infer"
            wires = {
                "json": Wire(form="v2-json", path=tensors),
                "binary": Wire(form="v2-binary", path=tensors),
                "text": Wire(form="mlos-text", path=f"/v1/models/{name}/inference"),
                "openai": Wire(form="openai", path="/v1/completions"),
            }
            facts = {key: str(server.model.get(key)) for key in ("engine", "precision", "threads")}
            port = int(server.url.rpartition(":")[2])
            socket = Settings().sockets / f"admin-{port}.sock"
            repository = Repository(f"/v2/repository/models/{name}", socket)
            yield Served(port, wires, tolerance, facts, repository)
            server.stop()


class _Described(BaseModel):
    """What a ``peer.toml`` says.

    In ``command``, ``{python}``, ``{folder}`` (the peer's), ``{port}`` and ``{other}`` are filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    command: tuple[str, ...]
    ready: str
    python: str | None = None
    """What its environment is made of, where not of this Python."""
    native: bool = False
    """Whether it computes with our own build of llama.cpp."""
    environment: dict[str, str] = {}
    configuration: tuple[str, ...]
    repository: str | None = None
    """The path of its model's repository, where a running server of it loads and unloads."""
    wires: dict[str, Wire]


class Peer:
    """A peer of ``benchmarks/peers``, or of another ``folder``; ``python`` is used as it is where it is given.

    Raises:
        NotFoundError: if there is none of that name.
        RefusedError: if its description cannot be read.
    """

    ours = False

    def __init__(self, name: str, folder: Path | None = None, python: Path | None = None) -> None:
        self.name, self._folder = name, folder or PEERS / name
        try:
            self._said = _Described.model_validate(tomllib.loads((self._folder / "peer.toml").read_text()))
        except OSError as error:
            raise NotFoundError(
                f"there is no peer {name!r}", expected=", ".join(peer_names()), got=name, field="peer"
            ) from error
        except (ValidationError, tomllib.TOMLDecodeError) as error:
            raise RefusedError(f"the description of peer {name!r} cannot be read: {error}") from error
        self.title, self.configuration = self._said.title, self._said.configuration
        self.speaks = frozenset(self._said.wires)
        self._python, self._made = python, python is None

    def prepare(self) -> str:
        """Make its environment."""
        if self._made:
            wheels = [native_wheel()] if self._said.native else []
            self._python = python_of(self.name, self._folder / "requirements.txt", self._said.python, wheels)
        files = sorted(self._folder.glob("*"))
        digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()
        return f"requirements and server {digest[:16]}"

    @contextmanager
    def serving(self, package: Package, settings: Mapping[str, Any]) -> Iterator[Served]:
        """Its own command on free ports of 127.0.0.1."""
        if self._python is None:
            self.prepare()
        port, other = _free_ports(2)
        command = [
            part.format(python=self._python, port=port, other=other, folder=self._folder)
            for part in self._said.command
        ]
        with tempfile.TemporaryDirectory(prefix="mlos-bench-") as scratch:
            environment = {
                "HOME": scratch,
                "PATH": f"{Path(str(self._python)).parent}:{os.environ.get('PATH', os.defpath)}",
                "PYTHONPATH": f"{self._folder}:{PEERS}",
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": scratch,
                "MLOS_BENCH": json.dumps({**settings, "port": port}),
                **self._said.environment,
            }
            log = Path(scratch) / "log"
            with log.open("wb") as file:
                process = subprocess.Popen(  # noqa: S603  (the peer's own command)
                    command,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    cwd=scratch,
                    start_new_session=True,
                )
            try:
                _wait_ready(self.name, f"http://127.0.0.1:{port}{self._said.ready}", process, log)
                try:
                    path = self._said.repository
                    repository = Repository(path) if path is not None else None
                    yield Served(port, self._said.wires, tolerance_named("fp32"), {}, repository)
                except UnavailableError as error:
                    raise UnavailableError(f"{error.message}; {_last_words(process, log)}") from error
            finally:
                _end(process)


def peer_names() -> list[str]:
    """The peers there are."""
    return sorted(path.parent.name for path in PEERS.glob("*/peer.toml"))


def side_named(name: str) -> Side:
    """MLOS (``mlos``, and behind it the flags that it is started with), or a peer.

    Raises:
        NotFoundError: if there is none of that name.
    """
    first, *flags = shlex.split(name)
    return Mlos(name, *flags) if first == "mlos" else Peer(name)


def _free_ports(number: int) -> list[int]:
    """Ports that nobody listens on now; taken together, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports


def _wait_ready(name: str, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline, reason = time.monotonic() + _READY_SECONDS, "no answer yet"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"{name} ended: {_last_words(process, log)}")
        try:
            answer = httpx2.get(url, timeout=10, trust_env=False)
        except httpx2.TransportError as error:
            reason = f"{type(error).__name__}: {error}"
        else:
            if answer.status_code == httpx2.codes.OK:
                return
            reason = f"status {answer.status_code}: {answer.text[:200]}"
        time.sleep(0.05)  # readiness has no event to wait for over HTTP
    raise UnavailableError(
        f"{name} was not ready after {_READY_SECONDS:.0f} s: {reason}; {_last_words(process, log)}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started: workers of several peers survive their parent's SIGTERM."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, left = psutil.wait_procs(family, timeout=1)
    for each in left:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, timeout=_STOP_SECONDS)


def _last_words(process: subprocess.Popen[bytes], log: Path) -> str:
    said = log.read_text(errors="replace")[-_TAIL:].strip()
    return f"status {process.poll()}; its log ends: {said}"
