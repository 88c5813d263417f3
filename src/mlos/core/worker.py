"""The worker: one process that holds one model and answers what it claims from its channel.

Started by the supervisor with one line of JSON on stdin (:class:`Orders`) and one end of a channel. It verifies
the package's files, confines itself, opens engine and tasks, warms up, reports, and serves until the front
hangs up. On its stdout it reports one JSON object per line (:class:`Report`); what libraries print lands on
stderr. No native library touches the model before the sandbox holds.

What it does not know: HTTP, other models, why it was started. It imports neither torch nor transformers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from mlos.accel import Job, WorkerChannel
from mlos.accel.userspace import UserspaceWorker
from mlos.core import tensors
from mlos.core.worker_protocol import Answer, Ask, Orders, Report
from mlos.engines import Engine, open_model
from mlos.errors import DeadlineError, MlosError, NoRoomError, PayloadTooLargeError, WorkerError
from mlos.host.cgroup import usable_memory
from mlos.host.child import die_with, measured
from mlos.host.sandbox import Policy, confine
from mlos.model import Manifest, TensorSpec
from mlos.store import Store
from mlos.tasks import Tasks, tasks_of

HEAVY = ("torch", "transformers", "huggingface_hub")
"""What a worker must not import: they take seconds and gigabytes, and do not serve."""
_OPEN_FILES = 256
_MEMORY_SHARE = 0.75
"""Of the memory this host may use: the most a worker may, so that a greedy request fails alone."""


class Model:
    """A loaded model: its tasks and its engine, and the labels of its classes by how many there are."""

    def __init__(self, tasks: Tasks, engine: Engine, labels: dict[int, list[str]]) -> None:
        self._tasks, self._engine, self._labels = tasks, engine, labels

    def answer(self, job: Job, channel: WorkerChannel) -> Answer:
        """Preprocess, compute and postprocess one request; it is given up when nobody waits for it any more."""
        ask = msgspec.convert(job.body, Ask)
        times = [job.sent, job.received, time.monotonic()]
        request = tensors.request_of(ask)
        task = self._tasks.choose(request)
        prepared = task.preprocess(request)
        times.append(time.monotonic())
        computed = task.compute(self._engine, prepared, _JobStream(channel, job, wanted=request.stream))
        times.append(time.monotonic())
        named = None
        if ask.tensors is None:
            result = msgspec.json.encode(task.postprocess(prepared, computed))
        else:
            result, named = b"null", tensors.answered(ask, prepared.outputs, computed, self._labels)
        times.append(time.monotonic())
        sent, received, begun, preprocessed, finished, postprocessed = times
        return Answer(
            task.name,
            result,
            {
                "copy_in": 1e3 * (received - sent),
                "preprocess": 1e3 * (preprocessed - begun),
                "compute": 1e3 * (finished - preprocessed),
                "postprocess": 1e3 * (postprocessed - finished),
            },
            getattr(computed, "tokens", dict(prepared.tokens)),
            named,
        )


class _JobStream:
    """A claimed request's way back through the channel."""

    def __init__(self, channel: WorkerChannel, job: Job, *, wanted: bool) -> None:
        self._channel, self._job, self._wanted = channel, job, wanted

    def emit(self, part: dict[str, Any]) -> None:
        if self._wanted:
            self._channel.emit(self._job, part)

    def check(self) -> None:
        if self._channel.cancelled(self._job):
            raise DeadlineError("nobody waits for this request any more")


def load(orders: Orders) -> tuple[Model, Report]:
    """Verify the package, confine this process, then open what the package holds.

    Raises:
        MlosError: the package is corrupt, its engine is missing, the model cannot be opened.
    """
    seconds = {"start": time.monotonic() - orders.started}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        seconds[name] = time.monotonic() - begun

    with stage("verify"):
        store = Store(Path(orders.store))
        package = store.find(orders.digest)
        store.check(package)
    manifest: Manifest = package.manifest
    with stage("confine"):
        policy = Policy(
            read=(package.folder,),
            open_files=_OPEN_FILES,
            memory_bytes=int(_MEMORY_SHARE * usable_memory()),
        )
        confinement = confine(measured(policy))
    with stage("open"):
        engine = open_model(package.folder, manifest.artifact, orders.threads)
        tasks = tasks_of(package.folder, manifest, orders.limits)
    with stage("warm_up"):
        note = _warm_up(engine, manifest.artifact.inputs)
    report = Report(
        engine=engine.name,
        engine_version=engine.version,
        load_seconds=seconds,
        sandbox=confinement.applied,
        missing=confinement.missing,
        heavy=tuple(name for name in HEAVY if name in sys.modules),
        note=note,
    )
    return Model(tasks, engine, labels_of(manifest)), report


def labels_of(manifest: Manifest) -> dict[int, list[str]]:
    """The labels that a package names for any of its tasks, by how many there are."""
    named = [options.get("labels") for options in manifest.preprocessing.values() if isinstance(options, dict)]
    return {len(labels): labels for labels in named if isinstance(labels, list)}


def _warm_up(engine: Engine, inputs: tuple[TensorSpec, ...]) -> str | None:
    """Run zeros of the smallest shape through the engine, so that the first request finds its memory ready.

    A model need not take zeros, nor axes of length one: then the first request is slower, which is said.
    """
    zeros = {
        spec.name: np.zeros([axis if isinstance(axis, int) else 1 for axis in spec.shape], spec.numpy_dtype)
        for spec in inputs
    }
    try:
        engine.run(zeros)
    except MlosError as error:
        return f"not warmed up: {error.message}"
    return None


def serve(channel: WorkerChannel, model: Model) -> None:
    """Answer what the channel brings until the front hangs up."""
    while jobs := channel.claim():
        for job in jobs:
            _complete(channel, job, _outcome(model, job, channel))


def _complete(channel: WorkerChannel, job: Job, outcome: Answer | MlosError) -> None:
    """Answer a job; an answer that cannot cross, such as one that is too large, costs this request alone."""
    try:
        channel.complete(job, outcome)
    except (TypeError, ValueError, OverflowError) as error:
        channel.complete(
            job,
            PayloadTooLargeError(f"the answer cannot be handed back: {error}", hint="ask for less at a time"),
        )
    except (MemoryError, OSError) as error:
        channel.complete(job, NoRoomError(f"no memory to hand the answer back: {error}"))


def _outcome(model: Model, job: Job, channel: WorkerChannel) -> Answer | MlosError:
    try:
        return model.answer(job, channel)
    except MlosError as error:
        return error
    except MemoryError:
        return NoRoomError(
            "the request needs more memory than the model's worker has", hint="send less at a time"
        )
    except Exception as error:  # a bug must cost one request, not the worker
        traceback.print_tb(error.__traceback__)  # its place alone: its message may quote the request
        return WorkerError(f"the model's worker failed: {type(error).__name__}")


def main() -> None:
    """Follow the orders on stdin."""
    # The stream of reports must survive what libraries print, so stdout becomes stderr first of all.
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # A terminal and an init system signal every process of the group; it is the server that decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    orders = msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)
    die_with(orders.parent)
    channel = UserspaceWorker(orders.channel)
    try:
        model, report = load(orders)
    except MlosError as error:
        _report(reports, Report(error=error.as_dict()))
        sys.exit(1)
    except Exception as error:  # a bug in an engine or a task: it would only happen again
        _report(reports, Report(error=WorkerError(f"{type(error).__name__} while loading: {error}").as_dict()))
        raise
    _report(reports, report)
    serve(channel, model)


def _report(stream: BinaryIO, report: Report) -> None:
    stream.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
