"""What a worker imports, how it loads, and what it makes of an answer that cannot cross."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.core import packages
from tests.core.conftest import Start

from mlos.accel import Job
from mlos.core.worker import _complete
from mlos.core.worker_protocol import Answer
from mlos.errors import MlosError, PayloadTooLargeError
from mlos.store import Store


def test_a_worker_imports_nothing_heavy_and_says_how_it_loaded(start: Start, store: Store) -> None:
    packages.embedder(store)
    server = start()
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    server.wait_for(lambda: any(line["message"] == "model ready" for line in server.lines()))
    ready = next(line for line in server.lines() if line["message"] == "model ready")
    assert ready["heavy"] == []
    assert set(ready["stages"]) == {"start", "verify", "confine", "open", "warm_up"}
    assert {"no_new_privs", "rlimits", "seccomp"} <= set(ready["sandbox"])
    assert ready["threads"] == 1
    # The rest of the load is the process's own start, which is told too.
    assert sum(ready["stages"].values()) <= ready["load_seconds"] + 0.01


def test_a_package_with_a_task_nobody_knows_is_refused(start: Start, store: Store) -> None:
    packages.double(store, tasks=("divination",))
    answer = start().infer("double", {"inputs": {"x": [[1, 2, 3]]}})
    assert answer.status == 422
    assert "divination" in answer.error["message"]


def test_after_a_life_that_died_loading_the_next_names_the_file_that_has_changed(
    start: Start, store: Store, home: Path
) -> None:
    packages.flip_byte(packages.double(store))
    modules = home / "modules"
    modules.mkdir()
    # A native library that crashes on what it is to open.
    (modules / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    server = start()
    answer = server.infer("double", {"inputs": {"x": [[1, 2, 3]]}})
    assert "is changed" in answer.error["message"]
    assert [line["message"] for line in server.lines()].count("worker died") == 1


class Narrow:
    """A channel through which nothing large passes, as no message over a gibibyte does through a real one."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def complete(self, job: Job, outcome: Any, *, claim: int = 0) -> None:
        if not isinstance(outcome, MlosError):
            raise ValueError("a message of 2 GiB is larger than the limit")
        self.outcomes.append(outcome)


def test_an_answer_that_cannot_cross_costs_its_request_alone() -> None:
    channel = Narrow()
    answer = Answer("tensors", b"{}", {})
    _complete(channel, Job(1, None, 0.0, 0.0), answer)  # type: ignore[arg-type]  # it has what is used
    (outcome,) = channel.outcomes
    assert isinstance(outcome, PayloadTooLargeError)
    assert "larger than the limit" in outcome.message
