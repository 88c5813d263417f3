"""What the tests of channels share: a worker in a thread, one in a process, and the time that they have."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

from mlos.accel import FrontChannel, Job, WorkerChannel
from mlos.errors import UnavailableError

Backend = tuple[Callable[[Callable[[int, str], None]], FrontChannel], Callable[[int], WorkerChannel]]
WORKER = """
import os, sys, time
from mlos.accel.userspace import UserspaceWorker
worker = UserspaceWorker(int(sys.argv[1]))
while jobs := worker.claim():
    for job in jobs:
        if job.body == "die":
            os.kill(os.getpid(), 9)
        worker.complete(job, (os.getpid(), job.body))
"""
GONE = UnavailableError("the worker is gone")


def soon(seconds: float = 30.0) -> float:
    return time.monotonic() + seconds


def unbroken(place: int, reason: str) -> None:
    raise AssertionError(reason)


class Serving:
    """A worker in a thread of this process, which answers each job with ``answer(job)``."""

    def __init__(
        self, worker: WorkerChannel, answer: Callable[[WorkerChannel, Job], Any], limit: int = 1
    ) -> None:
        self.worker, self.answer, self.limit = worker, answer, limit
        self.started: list[Any] = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while jobs := self.worker.claim(self.limit):
            for job in jobs:
                self.started.append(job.body)
                self.worker.complete(job, self.answer(self.worker, job))
        self.worker.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def echo(worker: WorkerChannel, job: Job) -> Any:
    return job.body


def looked(worker: WorkerChannel, limit: int = 1) -> list[Job]:
    """What a worker finds that looks in until there is something."""
    until = soon()
    while not (jobs := worker.claim(limit, wait=False)):
        assert time.monotonic() < until
        time.sleep(0.002)
    return jobs


def start_worker(front: FrontChannel) -> subprocess.Popen[bytes]:
    descriptor = front.connect()
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(descriptor)], pass_fds=[descriptor])
    os.close(descriptor)
    return process
