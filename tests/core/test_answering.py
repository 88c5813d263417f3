"""Claimed requests are answered each with its own answer, however they were put together (F25)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.core import packages

from mlos.accel import Job
from mlos.core.answering import Model
from mlos.core.worker_protocol import Answer
from mlos.engines import open_model
from mlos.errors import DeadlineError, InvalidInputError, MlosError, WorkerError
from mlos.store import Package, Store
from mlos.tasks import tasks_of


class Waiting:
    """The worker's end of a channel, as far as it is asked: who does not wait any more."""

    def __init__(self) -> None:
        self.gone: set[int] = set()

    def cancelled(self, job: Job) -> bool:
        return job.id in self.gone


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return packages.embedder(Store(tmp_path / "store"))


def model(package: Package, most: int = 4, longest: int | None = None) -> Model:
    artifact = package.manifest.artifact
    tasks, engine = tasks_of(package.folder, package.manifest), open_model(package.folder, artifact, 1)
    return Model(tasks, engine, package.manifest, most, longest)


def jobs(*bodies: dict[str, Any]) -> list[Job]:
    return [Job(number, {"request": body}, 0.0, 0.0) for number, body in enumerate(bodies)]


def answers(model: Model, asked: list[Job], channel: Waiting | None = None) -> dict[int, Answer | MlosError]:
    found = list(model.answers(asked, channel or Waiting()))  # type: ignore[arg-type]  # it has what is used
    assert len(found) == len(asked)
    return {job.id: outcome for job, outcome in found}


def result(outcome: Answer | MlosError) -> Any:
    assert isinstance(outcome, Answer), outcome
    return msgspec.json.decode(outcome.result)


def test_one_that_is_wrong_fails_alone(package: Package) -> None:
    beyond = {"inputs": {"input_ids": [[99]], "attention_mask": [[1]]}}
    fine = {"inputs": {"input_ids": [[2]], "attention_mask": [[1]]}}
    unclear = {"text": "mlos", "task": "divination"}
    found = answers(model(package), jobs(fine, beyond, fine, unclear, {"text": "mlos"}))
    assert isinstance(found[1], InvalidInputError)
    assert isinstance(found[3], MlosError)
    assert result(found[0]) == result(found[2])
    assert result(found[4])["dimensions"] == packages.WIDTH


def test_who_does_not_wait_any_more_is_left_out(package: Package) -> None:
    channel = Waiting()
    channel.gone = {1}
    found = answers(model(package), jobs({"text": "mlos"}, {"text": "makes"}, {"text": "ml"}), channel)
    assert isinstance(found[1], DeadlineError)
    batches = [outcome.batch for outcome in (found[0], found[2]) if isinstance(outcome, Answer)]
    assert batches == [2, 2]


def test_a_batch_that_nobody_waits_for_any_more_is_ended_and_not_tried_one_by_one(package: Package) -> None:
    class Held:
        """Computes until it is interrupted."""

        name = version = "held"

        def __init__(self) -> None:
            self.runs, self.interrupted = 0, threading.Event()

        def run(self, inputs: Any, outputs: Any = None) -> Any:
            self.runs += 1
            channel.gone = {0, 1}
            assert self.interrupted.wait(30)
            raise WorkerError("interrupted")

        def interrupt(self, thread: int) -> None:
            self.interrupted.set()

    channel, engine = Waiting(), Held()
    tasks = tasks_of(package.folder, package.manifest)
    held = Model(tasks, engine, package.manifest, 4)  # type: ignore[arg-type]  # it has what is used
    found = answers(held, jobs({"text": "mlos"}, {"text": "ml"}), channel)
    assert all(isinstance(outcome, DeadlineError) for outcome in found.values())
    assert engine.runs == 1


def test_how_long_and_how_many_is_kept_to(package: Package) -> None:
    long = {"text": " ".join(["mlos"] * 5)}
    found = answers(model(package, most=2, longest=4), jobs(long, {"text": "mlos"}, long, {"text": "ml"}))
    batches = {number: outcome.batch for number, outcome in found.items() if isinstance(outcome, Answer)}
    assert batches == {0: 1, 1: 2, 2: 1, 3: 2}


def test_a_file_whose_first_axis_is_not_known_to_count_requests_is_asked_one_by_one(tmp_path: Path) -> None:
    rows = packages.double(Store(tmp_path / "store"))
    assert model(rows, most=8).most == 1
