"""Work in a child process that is confined before it imports anything, and dies with its parent.

A child module ends with ``if __name__ == "__main__": serve(main)``; :func:`run_confined` starts it. The
request goes in as one JSON document on stdin; JSON lines come back on the descriptor that was stdout:
``event`` lines, then one ``result``, ``error`` (a :class:`MlosError`) or ``failure`` (anything else). What
libraries print lands on stderr, of which the parent keeps the end for its error messages. What a child sends
is data and checked as such: the model it read may have taken it over.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import logging
import os
import runpy
import selectors
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

from mlos.errors import DeadlineError, MlosError, NoRoomError, WorkerError
from mlos.host.sandbox import Policy, confine

_log = logging.getLogger(__name__)

_PASSED_ON = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED"),
        *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
        *("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"),
    }
)
"""What a child inherits of the environment, with ``LC_*``; tokens, proxies and settings are not among it."""
_PR_SET_PDEATHSIG = 1
_MAX_LINE = 64 << 20
_TAIL_BYTES, _TAIL_LINES, _MAX_WORDS = 16 << 10, 12, 300

Emit = Callable[[dict[str, Any]], None]


def run_confined(
    module: str,
    request: dict[str, Any],
    policy: Policy,
    *,
    timeout: float,
    on_event: Emit | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a child module on a request and return its result.

    The child has a private folder, removed afterwards, as home, temporary and working folder: under the
    first folder of ``policy.write``, else where temporary files go. ``timeout`` is in seconds of wall time;
    ``env`` adds to the few variables that a child inherits. Layers of the sandbox that this host lacks are
    logged as warnings.

    Raises:
        MlosError: what the child raised on purpose, as the class it was.
        NoRoomError: if it needed more memory or larger files than the policy allows.
        DeadlineError: if it took longer than ``timeout`` or the policy's processor time.
        WorkerError: if it failed, crashed, was killed or sent something else than the protocol.
    """
    with _private_folder(policy) as private:
        policy = dataclasses.replace(
            policy,
            read=tuple(path.absolute() for path in policy.read),
            write=(*(path.absolute() for path in policy.write), private),
        )
        document = json.dumps(
            {
                "parent": os.getpid(),
                "private": str(private),
                "policy": dataclasses.asdict(policy),
                "request": request,
            },
            default=os.fspath,
        ).encode()
        process = subprocess.Popen(  # noqa: S603 (this interpreter, and a module named by our own code)
            # -P: no file of the working folder can pass for a module; faulthandler: a crash says where.
            [sys.executable, "-P", "-X", "faulthandler", "-c", _LAUNCH, module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**environment(private), **(env or {})},
            # Ctrl-C is for the parent, which then ends the child; and there is no terminal to type into.
            start_new_session=True,
        )
        exchange = _Exchange(module, policy, timeout, on_event)
        try:
            return exchange.run(process, document)
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


_LAUNCH = "import sys; from mlos.host.child import _launch; _launch(sys.argv[1])"


@contextlib.contextmanager
def _private_folder(policy: Policy) -> Iterator[Path]:
    parent = next((path for path in policy.write if path.is_dir()), None)
    with tempfile.TemporaryDirectory(prefix=".mlos-child-", dir=parent) as folder:
        yield Path(folder).resolve()


def environment(private: Path) -> dict[str, str]:
    """The few variables a child inherits, and those that keep its libraries in ``private`` and offline."""
    kept = {k: v for k, v in os.environ.items() if k in _PASSED_ON or k.startswith("LC_")}
    if site.ENABLE_USER_SITE:
        kept["PYTHONUSERBASE"] = site.getuserbase()  # else it would be looked for in the child's own home
    own = dict.fromkeys(
        (
            *("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
            "XDG_RUNTIME_DIR",
        ),
        str(private),
    )
    fixed = {
        "LOGNAME": "mlos",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    return {**kept, **own, **fixed}


class _Exchange:
    """The parent's side of one conversation: what was sent, what came, and how to say what went wrong."""

    def __init__(self, module: str, policy: Policy, timeout: float, on_event: Emit | None) -> None:
        self._module, self._policy, self._timeout, self._on_event = module, policy, timeout, on_event
        self._line = bytearray()
        self._tail = bytearray()
        self._answer: dict[str, Any] | None = None

    def run(self, process: subprocess.Popen[bytes], document: bytes) -> dict[str, Any]:
        """Feed the request, take lines until the child ends, and return its result."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        deadline = time.monotonic() + self._timeout
        unsent = memoryview(document)
        with selectors.DefaultSelector() as selector:
            for stream, event in (
                (process.stdin, selectors.EVENT_WRITE),
                (process.stdout, selectors.EVENT_READ),
                (process.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, event)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._late()
                for key, _ in selector.select(left):
                    if key.fileobj is process.stdin:
                        unsent = unsent[_write(process.stdin, unsent) :]
                        more = bool(unsent)
                    else:
                        data = os.read(key.fd, 1 << 16)
                        (self._take if key.fileobj is process.stdout else self._keep)(data)
                        more = bool(data)
                    if not more:
                        selector.unregister(key.fileobj)
                        if key.fileobj is process.stdin:
                            process.stdin.close()
        try:
            status = process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired as error:
            raise self._late() from error
        return self._result(status)

    def _result(self, status: int) -> dict[str, Any]:
        answer = self._answer or {}
        if "error" in answer:
            said = answer["error"].items()
            raise MlosError.from_dict({k: _harmless(v) for k, v in said if isinstance(v, str)})
        if "failure" in answer:
            raise self._failed(f"failed: {_harmless(answer['failure'])}", short_of=answer.get("short_of"))
        if status == -signal.SIGXCPU:
            raise DeadlineError(
                f"{self._module} used up its {self._policy.cpu_seconds} s of processor time",
                hint=self._last_words(),
            )
        if status:
            short_of = _MEMORY if _tells_of_memory(self._tail.decode(errors="replace")) else None
            raise self._failed(_how_it_ended(status), short_of=short_of)
        if "result" not in answer:
            raise self._failed("ended without a result")
        result: dict[str, Any] = answer["result"]
        return result

    def _keep(self, data: bytes) -> None:
        self._tail += data
        del self._tail[:-_TAIL_BYTES]

    def _take(self, data: bytes) -> None:
        self._line += data
        *whole, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        if len(rest) > _MAX_LINE:
            raise self._failed(f"sent a line of more than {_MAX_LINE} bytes")
        for line in whole:
            self._hear(bytes(line))

    def _hear(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._failed(f"sent a line that is not JSON ({error})") from error
        match message:
            case {"event": dict(event)}:
                if self._on_event:
                    self._on_event(event)
            case {"missing": dict(missing)}:
                for layer, reason in missing.items():
                    _log.warning("the sandbox of %s lacks %s: %s", self._module, layer, reason)
            case {"result": dict()} | {"error": dict()} | {"failure": str()} if self._answer is None:
                self._answer = message
            case _:
                raise self._failed(f"sent what is not in the protocol: {line[:80]!r}")

    def _late(self) -> DeadlineError:
        return DeadlineError(
            f"{self._module} did not finish within {self._timeout:g} s", hint=self._last_words()
        )

    def _failed(self, what: str, short_of: str | None = None) -> MlosError:
        limits = {
            _MEMORY: f"its limit is {self._policy.memory_bytes} bytes of memory",
            _FILE_SIZE: f"its limit is {self._policy.file_bytes} bytes a file",
            _DISK: "no space is left on the disk",
        }
        if short_of in limits:
            return NoRoomError(f"{self._module} {what}; {limits[short_of]}", hint=self._last_words())
        return WorkerError(f"{self._module} {what}", hint=self._last_words())

    def _last_words(self) -> str | None:
        """The end of the child's stderr."""
        text = _harmless(self._tail.decode(errors="replace"))
        lines = [line[:_MAX_WORDS] for line in text.splitlines()]
        lines = [line for line in lines if line.strip()][-_TAIL_LINES:]
        return "it wrote last:\n" + "\n".join(lines) if lines else None


def _harmless(text: str) -> str:
    """A child's words without what could steer the terminal they are shown on."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


_MEMORY, _FILE_SIZE, _DISK = "memory", "file size", "disk"
"""What a child can be short of."""
_MEMORY_WORDS = (
    "bad_alloc",
    "MemoryError",
    "not enough memory",
    "an't allocate memory",
    "annot allocate memory",
)
"""How C++, Python, torch and the C library say that an allocation failed."""


def _tells_of_memory(text: str) -> bool:
    return any(words in text for words in _MEMORY_WORDS)


def _short_of(error: BaseException | None) -> str | None:
    """What an exception, or one behind it, says the process is short of."""
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if isinstance(error, MemoryError) or number == errno.ENOMEM or _tells_of_memory(str(error)):
            return _MEMORY
        if number in (errno.EFBIG, errno.ENOSPC):
            return _FILE_SIZE if number == errno.EFBIG else _DISK
        error = error.__cause__ or error.__context__
    return None


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    names = {each.value: each.name for each in signal.Signals}
    why = ", as the kernel does where memory runs out" if status == -signal.SIGKILL else ""
    return f"was ended by {names.get(-status, f'signal {-status}')}{why}"


def _write(stream: IO[bytes], data: memoryview) -> int:
    """Send what the pipe takes; a child that is gone takes everything, and its end says why."""
    try:
        return os.write(stream.fileno(), data[: 1 << 16])
    except BrokenPipeError:
        return len(data)


def serve(main: Callable[[dict[str, Any], Emit], dict[str, Any]]) -> NoReturn:
    """What a child module calls under ``if __name__ == "__main__"``: answer the parent's request.

    ``main`` gets the request and ``emit``, which sends the parent one progress event. The process is confined
    already, since before the module was imported.
    """
    assert _served is not None, "a child module is started by run_confined"
    request, send = _served
    try:
        answer = {"result": main(request, lambda event: send({"event": event}))}
    except MlosError as error:
        answer = {"error": error.as_dict()}
    send(answer)
    sys.exit(0)


_served: tuple[dict[str, Any], Emit] | None = None


def _launch(module: str) -> NoReturn:
    """Become the child: take the request, die with the parent, confine, then run the module."""
    global _served
    # The stream to the parent must survive whatever libraries print, so stdout becomes stderr first of all.
    stream = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    with os.fdopen(0, "rb", closefd=False) as stdin:
        document = stdin.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    if not document:
        sys.exit("the parent was gone before it sent the request")
    start = json.loads(document)
    die_with(start["parent"])

    def send(message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message, allow_nan=False).encode() + b"\n")
        while line:
            line = line[stream.write(line) or 0 :]

    try:
        os.chdir(start["private"])
        # Where memory runs out, it shall be this process that goes, not the one that waits for it.
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        confinement = confine(_policy(start["policy"]))
        if confinement.missing:
            send({"missing": confinement.missing})
        _served = (start["request"], send)
        sys.argv = [module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except MlosError as error:
        send({"error": error.as_dict()})
    except Exception as error:
        # The parent tells a person; the traceback goes to stderr, whose end it shows.
        sys.excepthook(type(error), error, error.__traceback__)
        sys.stderr.flush()
        send({"failure": f"{type(error).__name__}: {error}", "short_of": _short_of(error)})
    sys.exit(1)


def _policy(fields: dict[str, Any]) -> Policy:
    """The policy that was sent."""
    return measured(Policy(**{**fields, **{key: tuple(map(Path, fields[key])) for key in ("read", "write")}}))


def measured(policy: Policy) -> Policy:
    """``policy``, and where coverage measures this process, the folder it writes its data to."""
    if "coverage" in sys.modules and (running := sys.modules["coverage"].Coverage.current()):
        folder = Path(running.config.data_file).absolute().parent
        folder.mkdir(parents=True, exist_ok=True)
        return dataclasses.replace(policy, write=(*policy.write, folder))
    return policy


def die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends (to Linux, the thread of it that started us)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)
