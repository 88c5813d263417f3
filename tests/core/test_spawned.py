"""A child under the event loop: what it is told, what it says, how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mlos.core.spawned import Spawned

ECHO = "import sys; print(sys.stdin.read()); print('said', file=sys.stderr); sys.exit(3)"


async def spawn(code: str, message: bytes = b"") -> Spawned:
    child = await Spawned.start((sys.executable, "-c", code), env=dict(os.environ), limit=1 << 16)
    child.tell(message)
    return child


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def run(what: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(what)


def test_it_is_told_its_message_and_heard_to_the_end() -> None:
    async def once() -> None:
        child = await spawn(ECHO, b"orders")
        assert child.returncode is None or child.returncode == 3
        assert await child.stdout.read() == b"orders\n"
        assert await child.stderr.read() == b"said\n"
        assert await child.wait() == 3
        assert child.returncode == 3
        child.kill()  # of one that has ended: nothing
        child.close()

    run(once())


def test_one_that_ends_before_it_listens_is_an_end_and_no_error() -> None:
    async def once() -> None:
        child = await spawn("import os; os._exit(7)", b"x" * 4096)
        assert await child.wait() == 7
        child.close()

    run(once())


def test_it_is_killed_and_leaves_nothing_open() -> None:
    async def often() -> None:
        before = 0
        for number in range(5):
            child = await spawn("import time; time.sleep(600)")
            child.kill()
            assert await child.wait() == -signal.SIGKILL
            child.close()
            await asyncio.sleep(0.05)
            before = before if number else descriptors()
        assert descriptors() <= before

    run(often())


def test_a_program_that_is_not_there_is_an_error_that_leaves_nothing_open(tmp_path: Path) -> None:
    async def once() -> None:
        before = descriptors()
        with pytest.raises(FileNotFoundError):
            await Spawned.start((str(tmp_path / "none"),), env=dict(os.environ), limit=1 << 16)
        assert descriptors() == before

    run(once())
