"""What a compromised engine would try (T19). Run confined as a child module, and free as the control."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlos.host.child import Emit, serve

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_FS, _PTRACE_TRACEME = 0x200, 0


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Try everything; answers per attempt ``done`` or the name of the error number."""
    outside = Path(request["outside"])
    attempts: dict[str, Callable[[], object]] = {
        "connect": lambda: socket.create_connection(("127.0.0.1", request["port"]), 5).close(),
        "connect unix": lambda: _connect_unix(request["unix"]),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)).close(),
        "datagram pair": _datagram_pair,
        "read outside": (outside / "canary").read_text,
        "list outside": lambda: list(outside.iterdir()),
        "follow a link out": (Path(request["inside"]) / "link").read_text,
        "write outside": lambda: (outside / "planted").write_text("x"),
        "change outside": lambda: (outside / "canary").write_text("changed"),
        "truncate outside": lambda: os.truncate(outside / "canary", 1),
        "change mode outside": lambda: (outside / "canary").chmod(0o777),
        "rename outside": lambda: (outside / "canary").rename(outside / "moved"),
        "delete outside": lambda: (outside / "victim").unlink(),
        "parent's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "signal the parent": lambda: os.kill(os.getppid(), 0),
        "fork": _fork,
        "subprocess": lambda: subprocess.run(["/bin/true"], check=True),
        "posix_spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "execve": _execve,
        "unshare": lambda: _call("unshare", _CLONE_FS),
        # Last: from here on, a signal would stop the process for its tracer.
        "ptrace": lambda: _call("ptrace", _PTRACE_TRACEME, 0, 0, 0),
    }
    return {name: _outcome(attempt) for name, attempt in attempts.items()}


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def _datagram_pair() -> None:
    for end in socket.socketpair(type=socket.SOCK_DGRAM):
        end.close()


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _execve() -> None:
    """Done if the kernel looked for the program; one that is there would replace this process."""
    try:
        os.execv("/nonexistent/program", ["program"])
    except FileNotFoundError:
        return


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    if "free" in sys.argv:
        import json

        json.dump(main(json.load(sys.stdin), lambda event: None), sys.stdout)
    else:
        serve(main)
