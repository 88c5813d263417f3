"""One file over HTTP, by range, into a path that outlives interruptions.

Whatever arrives is worth nothing until its declared hash is checked, and that is done here, over the whole
file, each time. A download that was resumed and then has the wrong hash starts again from nothing once: its
content may have changed between the two halves. Waits grow, are jittered and bounded; a server that says how
long to wait is heeded. Credentials go to the origin they are meant for and to no other, whatever it redirects
to.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import get_session

from mlos.axon.sources import SourceFile
from mlos.axon.sources.digests import corrupt, difference
from mlos.console import Step
from mlos.errors import HubError, MlosError

_T = TypeVar("_T")
_REDIRECTS = 6
_PROGRESS = 256 << 10
"""Bytes an attempt must bring for the count of failures to start again."""


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried for. Waits are in seconds."""

    retries: int = 4
    first_wait: float = 0.5
    longest_wait: float = 8.0
    longest_retry_after: float = 90.0
    """A server that asks for more than this is taken at its word, and the command ends."""
    stall: float = 10.0
    """Longest time without a byte."""

    @classmethod
    def from_environment(cls) -> Patience:
        """With the hub client's own variable for the stall, ``HF_HUB_DOWNLOAD_TIMEOUT``, read now."""
        named = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
        return cls(stall=float(named)) if named.isdigit() and int(named) > 0 else cls()

    @property
    def timeout(self) -> httpx2.Timeout:
        """The same for the HTTP client."""
        return httpx2.Timeout(self.stall)


class TransientError(Exception):
    """An attempt failed in a way that may pass; ``error`` is what it is if it does not."""

    def __init__(self, error: MlosError, *, after: float | None = None, progressed: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.after = after
        self.progressed = progressed


def persist(action: Callable[[], _T], patience: Patience) -> _T:
    """Run ``action`` until it does not raise :class:`TransientError`, or patience ends.

    Raises:
        MlosError: the last attempt's error.
    """
    failures = 0
    while True:
        try:
            return action()
        except TransientError as trouble:
            failures = 1 if trouble.progressed else failures + 1
            if failures > patience.retries or (trouble.after or 0) > patience.longest_retry_after:
                raise trouble.error from trouble
            grown = min(patience.longest_wait, patience.first_wait * 2.0 ** (failures - 1))
            jitter = random.uniform(0.5, 1.0)  # noqa: S311  (spreads clients turned away together; no secret)
            time.sleep(max(trouble.after or 0.0, grown * jitter))


def retry_after(response: httpx2.Response) -> float | None:
    """The seconds a response asks to wait, where it gives a number."""
    value = response.headers.get("Retry-After", "").strip()
    return float(value) if value.isdigit() and len(value) < 8 else None


def is_transient(status: int) -> bool:
    """Whether a status is worth another attempt."""
    return status in (408, 429) or 500 <= status <= 599


def download(
    url: str,
    headers: Mapping[str, str],
    file: SourceFile,
    path: Path,
    *,
    patience: Patience,
    step: Step,
    explain: Callable[[httpx2.Response], MlosError],
) -> None:
    """Bring ``file`` to ``path``, continuing what is already there, and check its hash.

    Args:
        url: where it is; the ``authorization`` among ``headers`` goes to this URL's origin alone.
        headers: sent with each request.
        file: the declared size and hash.
        path: on return the whole file; after an interruption what came so far; absent after a wrong hash.
        patience: how often and how long to try.
        step: told of bytes.
        explain: turns a refusal (4xx, 5xx) into the error to show.

    Raises:
        CorruptError: if what the server has is not what was declared.
        HubError, AuthenticationError, NotFoundError: as ``explain`` says, after the retries.
    """
    path.touch()
    if path.stat().st_size > file.size:
        os.truncate(path, 0)
    step.advance(path.stat().st_size)
    resumed = path.stat().st_size > 0
    while True:

        def attempt() -> None:
            nonlocal resumed
            resumed = resumed or path.stat().st_size > 0
            _transfer(url, headers, file, path, patience, step, explain)

        persist(attempt, patience)
        wrong = difference(path, file)
        if wrong is None:
            return
        step.advance(-path.stat().st_size)
        if not resumed:
            path.unlink()
            raise wrong
        os.truncate(path, 0)
        resumed = False


def _transfer(
    url: str,
    headers: Mapping[str, str],
    file: SourceFile,
    path: Path,
    patience: Patience,
    step: Step,
    explain: Callable[[httpx2.Response], MlosError],
) -> None:
    """One request for the bytes that are missing; appends what comes."""
    start = offset = path.stat().st_size
    if offset == file.size:
        return
    asked = {**headers, "Accept-Encoding": "identity"}
    if offset:
        asked["Range"] = f"bytes={offset}-"
    try:
        with _open(url, asked, patience) as response:
            if response.status_code == 416:
                step.advance(-offset)
                os.truncate(path, 0)
                raise TransientError(corrupt(file, f"{file.size} bytes", f"no bytes after {offset}"))
            if is_transient(response.status_code):
                raise TransientError(explain(response), after=retry_after(response))
            if response.status_code not in (200, 206):
                raise explain(response)
            if response.headers.get("Content-Type", "").lower().startswith("text/html"):
                if not offset:
                    path.unlink()
                raise corrupt(file, _promised(file), "an HTML page")
            if response.status_code == 200 or not _continues(response, offset):
                step.advance(-offset)
                os.truncate(path, 0)
                if response.status_code == 206:
                    raise TransientError(corrupt(file, f"bytes from {offset}", "another range"))
                start = offset = 0
            with path.open("ab") as stream:
                for chunk in response.iter_bytes():
                    offset += len(chunk)
                    if offset > file.size:
                        break
                    stream.write(chunk)
                    step.advance(len(chunk))
    except httpx2.TransportError as error:
        problem = HubError(
            f"{file.path}: the connection failed after {offset} of {file.size} bytes: {_what(error)}",
            hint="check the network and run the same command again: it continues where it stopped",
        )
        raise TransientError(problem, progressed=offset - start >= _PROGRESS) from error
    if offset > file.size:
        step.advance(-path.stat().st_size)
        path.unlink()
        raise corrupt(file, f"{file.size} bytes", "more")
    if offset < file.size:
        short = corrupt(file, f"{file.size} bytes", f"{offset} bytes")
        raise TransientError(short, progressed=offset - start >= _PROGRESS)


@contextmanager
def _open(url: str, headers: dict[str, str], patience: Patience) -> Iterator[httpx2.Response]:
    """GET with redirects followed here, so that credentials stay with their origin and https stays https."""
    session = get_session()
    origin = target = httpx2.URL(url)
    for _ in range(_REDIRECTS):
        if target.origin != origin.origin:
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        with session.stream(
            "GET", target, headers=headers, timeout=patience.timeout, follow_redirects=False
        ) as response:
            if not response.has_redirect_location:
                yield response
                return
            here, target = target, target.join(response.headers["Location"])
        if target.scheme != "https" and (target.scheme, here.scheme) != ("http", "http"):
            raise HubError(f"{here.host} redirects to {target.scheme}://{target.host}, which is not followed")
    raise HubError(f"{origin.host} redirects more than {_REDIRECTS - 1} times for {origin.path}")


def _continues(response: httpx2.Response, offset: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _promised(file: SourceFile) -> str:
    return f"SHA-256 {file.sha256}" if file.sha256 else f"git blob SHA-1 {file.git_sha1}"


def _what(error: httpx2.TransportError) -> str:
    if isinstance(error, httpx2.TimeoutException):
        return "nothing came for too long"
    return str(error) or type(error).__name__
