"""The command line ``mlos_core``: its flags, and what is settled before the server runs."""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from mlos import __version__, console
from mlos.core import log, server
from mlos.core.access import gate_of
from mlos.errors import MlosError, NotFoundError, UsageError, WorkerError
from mlos.settings import Settings
from mlos.store import Store

app = typer.Typer(name="mlos_core", add_completion=False, pretty_exceptions_enable=False)


class LogLevel(StrEnum):
    """From which level on lines are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mlos_core {__version__}\n")
        raise typer.Exit


@app.command()
def serve(
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one. [default: 8080]")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="Port for gRPC; 0 takes a free one. [default: no gRPC]")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Serve this model only, and load it now; installed if it is not. May be repeated."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads per worker; 0 takes the physical cores. [default: 0]")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Workers per model; they share the cores. [default: 1]")
    ] = None,
    batch_wait: Annotated[
        float | None,
        typer.Option(help="Milliseconds a request waits to be computed with others. [default: 0]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, or as tuned: auto, bf16, fp16, int8 (see axon tune). [default: fp32]"),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="never, or first-load: tune a model that has no record before it loads. [default: never]"
        ),
    ] = None,
    spare_worker: Annotated[
        bool | None,
        typer.Option(help="Keep a started process, some 60 MB, for the next load. [default: --spare-worker]"),
    ] = None,
    request_timeout: Annotated[
        float | None, typer.Option(help="Seconds from a request's arrival to its deadline. [default: 60]")
    ] = None,
    load_timeout: Annotated[
        float | None, typer.Option(help="Seconds a model may take to load, once tuned. [default: 300]")
    ] = None,
    max_body_bytes: Annotated[
        int | None, typer.Option(help="Largest request body. [default: 33554432]")
    ] = None,
    memory_budget: Annotated[
        int | None, typer.Option(help="Bytes of memory for all workers. [default: what the host has]")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests waiting per model. [default: 256]")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File of the token that requests must bring; or set MLOS_TOKEN.")
    ] = None,
    admin_token_file: Annotated[
        Path | None, typer.Option(help="File of the token of administration; or set MLOS_ADMIN_TOKEN.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen beyond loopback although requests need no token.")
    ] = False,
    log_level: Annotated[LogLevel, typer.Option(help="Least level logged to stderr.")] = LogLevel.INFO,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Serve the installed models over HTTP, and over gRPC where it is given a port.

    Flags stand above environment variables (MLOS_PORT, ...), and these above the configuration file. The first
    line on stdout is the base URL, written once the server listens; the log goes to stderr as JSON lines.
    """
    flags = {
        "port": port,
        "grpc_port": grpc_port,
        "host": host,
        "threads": threads,
        "replicas": replicas,
        "batch_wait_ms": batch_wait,
        "precision": precision,
        "tune": tune,
        "spare_worker": spare_worker,
        "request_timeout": request_timeout,
        "load_timeout": load_timeout,
        "max_body_bytes": max_body_bytes,
        "memory_budget": memory_budget,
        "max_queue": max_queue,
        "token_file": token_file,
        "admin_token_file": admin_token_file,
        "allow_remote": allow_remote or None,
    }
    settings = _settings({name: value for name, value in flags.items() if value is not None})
    gate = gate_of(settings)
    _refuse_strangers(settings)
    for each in (settings.port, settings.grpc_port):  # before minutes go into installs
        if each is not None:
            server.listen(settings.host, each).close()
    named = model or []
    _install_missing(named, Store(settings.store))
    listener = server.listen(settings.host, settings.port)
    handler = log.start(log_level)
    try:
        server.run(settings, listener, named, gate, handler)
    finally:
        handler.close()


def _settings(flags: dict[str, Any]) -> Settings:
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"setting {name}: {first['msg']}",
            field=name,
            expected=first["msg"],
            got="(not shown)" if "token" in name else repr(first["input"]),
        ) from error


def _refuse_strangers(settings: Settings) -> None:
    """Without tokens, who reaches the address may use the server: beyond loopback only if asked for (T11)."""
    if settings.allow_remote or settings.token or settings.token_file or settings.host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UsageError(
            f"{settings.host} is not a loopback address, and requests need no token: "
            "anyone who reaches it could use the server",
            field="host",
            expected="a loopback address",
            got=settings.host,
            hint="set MLOS_TOKEN or --token-file, or add --allow-remote if that is what you want",
        )


def _install_missing(named: list[str], store: Store) -> None:
    """Install what was named and is not there, as a person would: with ``axon``."""
    for name in named:
        try:
            store.find(name)
        except NotFoundError:
            _install(name)
        except MlosError:
            pass  # it is installed and broken, which the server reports with its reason


def _install(name: str) -> None:
    beside = Path(sys.executable).with_name("axon")
    axon = str(beside) if beside.exists() else shutil.which("axon")
    if axon is None:
        raise NotFoundError("the program axon is not installed beside mlos_core", field="model", got=name)
    # Its own stdout belongs on our stderr: the first line of ours is the base URL.
    status = subprocess.run([axon, "install", "--", name], stdout=sys.stderr, check=False).returncode  # noqa: S603
    if status:
        error = WorkerError(
            f"axon could not install {name}: it ended with status {status}", field="model", got=name
        )
        console.Console().error(error)
        raise typer.Exit(status if status > 0 else 1)


def main() -> NoReturn:
    """Run ``mlos_core``."""
    console.run(app, console.Console)


if __name__ == "__main__":
    main()
