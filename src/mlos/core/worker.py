"""The worker: one process that holds one model and answers what it claims from its channel.

Started by the server, perhaps before there is a model for it, it waits for its orders (:class:`Orders`), with
which comes one end of a channel for each stream. It confines itself, opens engine and tasks while the package's
files are verified, warms up, reports, and serves until the front hangs up. On its stdout it reports one JSON
object per line (:class:`Report`); what libraries print lands on stderr. No native library touches the model
before the sandbox holds.

What it does not know: HTTP, other models, why it was started. It imports no transformers, and torch only where
torch computes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from mlos.accel import Job, WorkerChannel
from mlos.accel.userspace import UserspaceWorker
from mlos.core.answering import Model
from mlos.core.spawned import told
from mlos.core.worker_protocol import Answer, Orders, Report
from mlos.engines import Engine, Streams, open_model
from mlos.errors import MlosError, NoRoomError, PayloadTooLargeError, WorkerError
from mlos.host.cgroup import usable_memory
from mlos.host.child import die_with, measured
from mlos.host.sandbox import Policy, confine
from mlos.model import InferenceRequest, Manifest
from mlos.parity.record import requests_of
from mlos.store import Package, Store
from mlos.tasks import Prepared, SinglePass, Tasks, tasks_of

HEAVY = ("torch", "transformers", "huggingface_hub")
"""What a worker does not import unless its engine is one: they take seconds, and hundreds of megabytes."""
_OPEN_FILES = 256
_MEMORY_SHARE = 0.75
"""Of the memory this host may use: the most a worker may, so that a greedy request fails alone."""


def load(orders: Orders, streams: int = 1) -> tuple[list[Model], Report]:
    """Confine this process, then open what the package holds, a model for each stream, and verify the package.

    The files are hashed by another thread meanwhile: what they hold is strange to the sandbox either way, and
    nothing is answered before they are known to be right. After a life that died as it loaded they are first,
    and where a file can run code.

    Raises:
        MlosError: the package is corrupt, its engine is missing, the model cannot be opened.
    """
    seconds = {"start": time.monotonic() - orders.started}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        seconds[name] = time.monotonic() - begun

    store = Store(Path(orders.store))
    package = store.find(orders.digest)
    manifest: Manifest = package.manifest
    with stage("confine"):
        policy = Policy(
            read=(package.folder, *([Path(orders.compiled)] if orders.compiled is not None else [])),
            open_files=_OPEN_FILES,
            memory_bytes=int(_MEMORY_SHARE * usable_memory()),
        )
        confinement = confine(measured(policy))
    with ThreadPoolExecutor(1, thread_name_prefix="verify") as aside:
        verified = aside.submit(store.check, package)
        if orders.wary or manifest.artifact.runs_code:
            verified.result()
        try:
            with stage("open"):
                engine = _opened(package, orders, streams)
                # A tokenizer and the like for each: they were not made to be shared.
                tasks = [tasks_of(package.folder, manifest, orders.limits) for _ in range(streams)]
                models = [
                    Model(of, engine, manifest, orders.most, orders.longest, orders.sequences) for of in tasks
                ]
            with stage("warm_up"):
                both = (engine.alone, engine.beside) if isinstance(engine, Streams) else (engine,)
                note = next(filter(None, [_warm_up(each, tasks[0], package) for each in both]), None)
        finally:
            with stage("verify"):
                verified.result()  # what could not be opened may have been changed, which says more
    report = Report(
        engine=engine.name,
        engine_version=engine.version,
        precision=orders.precision,
        load_seconds=seconds,
        sandbox=confinement.applied,
        missing=confinement.missing,
        heavy=tuple(name for name in HEAVY if name in sys.modules),
        note=note,
    )
    return models, report


def _opened(package: Package, orders: Orders, streams: int) -> Engine:
    def opened(threads: int, streams: int) -> Engine:
        return open_model(
            package.folder,
            package.manifest.artifact,
            threads,
            engine=orders.engine,
            precision=orders.precision,
            cache=None if orders.compiled is None or orders.wary else Path(orders.compiled),
            streams=streams,
        )

    alone = opened(orders.threads, 1)
    return alone if streams == 1 else Streams(alone, opened(max(1, orders.threads // streams), streams))


def _warm_up(engine: Engine, tasks: Tasks, package: Package) -> str | None:
    """Run the engine once for each set of outputs that tasks ask for, so that the first request finds it ready.

    It is asked as the shortest golden requests ask; without any it runs zeros of the smallest shape. A model
    need not take zeros, nor axes of length one: then its first request is slower, which is said.
    """
    manifest = package.manifest
    try:
        if manifest.golden is not None and (
            asked := _asked(tasks, requests_of(package.folder / manifest.golden))
        ):
            for prepared in asked:
                engine.run(prepared.inputs, prepared.outputs)
            return None
        zeros = {
            spec.name: np.zeros([axis if isinstance(axis, int) else 1 for axis in spec.shape], spec.numpy_dtype)
            for spec in manifest.artifact.inputs
        }
        engine.run(zeros)
    except MlosError as error:
        return f"not warmed up: {error.message}"
    return None


def _asked(tasks: Tasks, requests: Iterable[InferenceRequest]) -> list[Prepared]:
    """The smallest of the requests for each set of outputs that tasks ask for in a single run."""
    found: dict[tuple[str, ...], Prepared] = {}
    for request in requests:
        task = tasks.choose(request)
        if isinstance(task, SinglePass):
            prepared = task.preprocess(request)
            smallest = found.setdefault(prepared.outputs, prepared)
            found[prepared.outputs] = min(smallest, prepared, key=_size)
    return list(found.values())


def _size(prepared: Prepared) -> int:
    return sum(tensor.size for tensor in prepared.inputs.values())


def serve_all(channels: Sequence[WorkerChannel], models: Sequence[Model]) -> None:
    """Answer what all channels bring, each by a thread and a model of its own, until the front hangs up."""

    def aside(channel: WorkerChannel, model: Model) -> None:
        try:
            serve(channel, model)
        except BaseException:  # a bug of ours ends the process, whichever thread meets it
            traceback.print_exc()
            os._exit(1)

    others = [
        threading.Thread(target=aside, args=each, name="stream", daemon=True)
        for each in zip(channels[1:], models[1:], strict=True)
    ]
    for each in others:
        each.start()
    serve(channels[0], models[0])
    for each in others:
        each.join()


def serve(channel: WorkerChannel, model: Model) -> None:
    """Answer what the channel brings until the front hangs up; what is written goes on meanwhile."""
    while (jobs := _claimed(channel, model)) or model.busy:
        left = len(jobs)
        for job, outcome in model.answers(jobs, channel):
            left -= 1
            # The last answer claims what comes next, so that the front need not be told so by another message.
            _complete(channel, job, outcome, claim=0 if left or model.busy else model.room)
        for job, outcome in model.step(channel):
            _complete(channel, job, outcome)


def _claimed(channel: WorkerChannel, model: Model) -> list[Job]:
    """What there is to begin: waited for if nothing is under way."""
    return channel.claim(model.room, wait=not model.busy) if model.room else []


def _complete(channel: WorkerChannel, job: Job, outcome: Answer | MlosError, *, claim: int = 0) -> None:
    """Answer a job; an answer that cannot cross, such as one that is too large, costs this request alone."""
    try:
        channel.complete(job, outcome, claim=claim)
        return
    except (TypeError, ValueError, OverflowError) as error:
        hint = "ask for less at a time"
        refusal: MlosError = PayloadTooLargeError(f"the answer cannot be handed back: {error}", hint=hint)
    except (MemoryError, OSError) as error:
        refusal = NoRoomError(f"no memory to hand the answer back: {error}")
    channel.complete(job, refusal, claim=claim)


def main() -> None:
    """Follow the orders."""
    # The stream of reports must survive what libraries print, so stdout becomes stderr first of all.
    reports = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    # A terminal and an init system signal every process of the group; it is the server that decides.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    message, descriptors = told()
    if not message:
        sys.exit("the server was gone before it gave orders")
    orders = msgspec.json.decode(message, type=Orders)
    die_with(orders.parent)
    channels = [UserspaceWorker(descriptor) for descriptor in descriptors]
    try:
        models, report = load(orders, len(channels))
    except MlosError as error:
        _report(reports, Report(error=error.as_dict()))
        sys.exit(1)
    except Exception as error:  # a bug in an engine or a task: it would only happen again
        _report(reports, Report(error=WorkerError(f"{type(error).__name__} while loading: {error}").as_dict()))
        raise
    _report(reports, report)
    serve_all(channels, models)


def _report(stream: BinaryIO, report: Report) -> None:
    stream.write(msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    main()
