"""The server process: a socket, the event loop, the rooms of the runtime wired together, and an orderly end.

SIGTERM or SIGINT drains: not ready at once, what is in flight is answered, then the workers and the process
end. A second one ends it now.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from mlos.core.access import Gate
from mlos.core.chosen import Chooser
from mlos.core.dataplane import DataPlane
from mlos.core.first_load import FirstLoad
from mlos.core.http import application
from mlos.core.http.protocol import LimitedProtocol
from mlos.core.log import QueuedLog, fields
from mlos.core.metrics import Metrics
from mlos.core.replica import Terms
from mlos.core.room import Room
from mlos.core.spare import Spare
from mlos.core.supervisor import Supervisor
from mlos.errors import MissingExtraError, UsageError
from mlos.host.environment import usable_cores
from mlos.settings import Settings
from mlos.store import Store
from mlos.tasks import Limits

if TYPE_CHECKING:
    from mlos.core.grpc.server import GrpcServer  # it needs an extra, which not every server does

_BACKLOG = 2048
_POLL_SECONDS = 0.02
_KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients wait to use one again, since a request that meets
the closing of its connection is lost."""
_CALLS_SECONDS = 1.0
"""How long calls that are still open when all is answered, such as idle streams, may take to end."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the address is taken, not ours, or no address.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, number)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror}", field="host", got=host) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}",
            field="port" if taken else "host",
            expected="a free port" if taken else "an address of this machine",
            got=f"{host}:{port}",
            hint="stop the program that uses the port, or choose another: --port 0 takes a free one"
            if taken
            else None,
        ) from error
    return listener


@contextlib.contextmanager
def listen_for_owner(settings: Settings, port: int) -> Iterator[socket.socket | None]:
    """A listening Unix socket for administration, which nobody but this user may connect to.

    It is named after the port, so that several servers of one ``MLOS_HOME`` each have their own. Nothing where
    the folder cannot be written: then only the token administers.
    """
    path = settings.sockets / f"admin-{port}.sock"
    try:
        listener = _bind_privately(path)
    except OSError as error:
        _log.warning("no socket for administration", extra=fields(path=str(path), reason=error.strerror))
        yield None
        return
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _bind_privately(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    path.unlink(missing_ok=True)  # of a server that was killed: the port is ours now
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        # By the open folder, since the address of a socket holds no more than 107 bytes.
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def base_url(listener: socket.socket) -> str:
    """Where a client reaches the socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(settings: Settings, listener: socket.socket, named: Sequence[str], gate: Gate, log: QueuedLog) -> None:
    """Serve until a signal ends it."""
    with (
        listen_for_owner(settings, listener.getsockname()[1]) as owners,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(_serve(settings, listener, owners, named, gate, log))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    owners: socket.socket | None,
    named: Sequence[str],
    gate: Gate,
    log: QueuedLog,
) -> None:
    _raise_descriptor_limit()
    store, cores, threads = Store(settings.store), usable_cores(), settings.threads
    if settings.replicas > 1:  # each has its part of the cores, whatever a model alone was tuned to
        threads = threads or max(1, cores // settings.replicas)
    room, spare = Room(settings.memory_budget), Spare(settings.spare_worker)
    first_load = None
    if settings.tune == "first-load":
        first_load = FirstLoad(settings.home, settings.precision, threads or cores, room)
    terms = Terms(
        settings.load_timeout,
        Limits(settings.max_text_bytes, settings.max_image_pixels, settings.max_audio_seconds),
        Chooser(settings.home, store, settings.precision, threads, cores, first_load),
        room,
        spare,
        settings.sequences,
        settings.replicas,
        settings.batch_wait_ms / 1e3,
    )
    supervisor = Supervisor(store, terms, named)
    metrics = Metrics(supervisor)
    metrics.dropped_log_lines.set_function(lambda: log.dropped)
    plane = DataPlane(
        supervisor, metrics, request_timeout=settings.request_timeout, max_queue=settings.max_queue
    )
    called = await _listen_for_calls(plane, gate, settings)
    server, administered = _server(plane, gate, settings), _server(plane, Gate(owner=True), settings)
    drained = asyncio.Event()

    def on_signal() -> None:
        if plane.draining:
            _log.warning("ended by a second signal")
            log.close()
            os._exit(128 + signal.SIGTERM)  # the workers die with this process
        plane.draining = True
        _log.info("draining", extra=fields(in_flight=plane.in_flight))
        if first_load is not None:
            first_load.end()
        drained.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)
    spare.prepare()
    supervisor.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    administering = asyncio.create_task(administered.serve(sockets=[owners])) if owners is not None else None
    while not server.started and not serving.done():
        await asyncio.sleep(_POLL_SECONDS)
    if not serving.done():
        _announce(base_url(listener))
        _log.info(
            "listening",
            extra=fields(
                url=base_url(listener),
                grpc=called.address,
                administration=str(settings.sockets) if owners is not None else None,
                threads=threads or cores,
                replicas=settings.replicas,
                precision=settings.precision,
                tune=settings.tune,
                named=list(named),
            ),
        )
    ending = asyncio.create_task(drained.wait())
    try:
        await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await _drain(plane, settings.drain_timeout)
            await supervisor.close()  # what is still under way is answered 503 before its connection is cut
            await called.stop()
            server.should_exit = administered.should_exit = True
        await serving
        if administering is not None:
            administered.should_exit = True
            await administering
    finally:
        ending.cancel()
        await supervisor.close()
        await spare.close()
        await called.stop()
        _log.info("ended")


@dataclass(frozen=True)
class _Calls:
    """The gRPC server, where there is one, and its address."""

    server: GrpcServer | None = None
    address: str | None = None

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(_CALLS_SECONDS)


async def _listen_for_calls(plane: DataPlane, gate: Gate, settings: Settings) -> _Calls:
    if settings.grpc_port is None:
        return _Calls()
    try:
        from mlos.core.grpc.server import GrpcServer
    except ImportError as error:
        raise MissingExtraError.of("grpc", "serving gRPC") from error
    server = GrpcServer(plane, gate, max_body_bytes=settings.max_body_bytes)
    return _Calls(server, await server.start(settings.host, settings.grpc_port))


def _server(plane: DataPlane, gate: Gate, settings: Settings) -> _Server:
    app = application(plane, gate, max_body_bytes=settings.max_body_bytes, read_timeout=settings.read_timeout)
    return _Server(
        uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1,
        )
    )


class _Server(uvicorn.Server):
    """uvicorn, which leaves the signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _drain(plane: DataPlane, seconds: float) -> None:
    """Wait until nothing is in flight, for so long at most."""
    try:
        async with asyncio.timeout(seconds):
            while plane.in_flight:
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        _log.warning("requests were cut off", extra=fields(in_flight=plane.in_flight, after_seconds=seconds))


def _announce(url: str) -> None:
    """Say where we listen: the first and only line on stdout."""
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


def _raise_descriptor_limit() -> None:
    """Take all descriptors that may be had: every client is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
