"""One model through all its gates: install, load, parity through HTTP, task results, traffic, stages, shutdown.

Everything is done as a user does it, with our programs as processes and HTTP between. A gate that fails ends
what cannot go on without it; what was found until then stays in the row.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from statistics import median
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np

from mlos.console import Console
from mlos.errors import MlosError, ParityError
from mlos.model import Tensors
from mlos.parity import (
    Case,
    GoldenRecord,
    Tolerance,
    compare_outputs,
    compare_result,
    describe,
    require,
    tolerance_named,
)
from mlos.settings import Settings
from mlos.store import Package, Store
from mlos.validation import load as loading
from mlos.validation import programs, results
from mlos.validation.plan import PlannedModel

_T = TypeVar("_T")
_REQUEST_SECONDS = 300.0
_DEFAULT_TOLERANCE = "fp32"


class _GateFailed(Exception):  # noqa: N818  (no error: it carries a failed gate out of the row's steps)
    """A gate failed in a way that ends the row."""


class _Row:
    """A row being filled; what is known so far is never lost."""

    def __init__(self, planned: PlannedModel) -> None:
        self.facts: dict[str, Any] = {
            "name": planned.name,
            "requested": planned.reference,
            "weights_reason": planned.weights_reason,
            "commands": {
                "all": shlex.join(["mlos", "validate", "--model", planned.reference]),
                "install": shlex.join(["axon", "install", planned.reference]),
                "serve": shlex.join(["mlos_core", "--model", planned.reference]),
            },
        }
        self.gates: list[results.Gate] = []

    def passed(self, name: Any, detail: str) -> None:
        self.gates.append(results.Gate(name=name, status="passed", detail=detail))

    def failed(self, name: Any, detail: str) -> None:
        self.gates.append(results.Gate(name=name, status="failed", detail=detail))

    def finished(self) -> results.Row:
        failed = next((gate for gate in self.gates if gate.status == "failed"), None)
        status: results.Status = "failed" if failed else "passed"
        reason = f"{failed.name}: {failed.detail}" if failed else None
        return results.Row(**self.facts, status=status, reason=reason, gates=tuple(self.gates))


def validate(planned: PlannedModel, settings: Settings, seed: int, console: Console) -> results.Row:
    """Put one model through all gates; never raises for what the model does."""
    row = _Row(planned)
    with suppress(_GateFailed), ExitStack() as running:
        package = _install(row, planned, settings)
        with console.step(f"{planned.name}: load"):
            server = _attempt(row, "load", lambda: running.enter_context(programs.serving(planned.reference)))
        row.passed("load", f"ready after {server.ready_seconds:.1f} s")
        _describe(row, server)
        url = f"{server.url}/v1/models/{server.model['id']}/inference"
        with console.step(f"{planned.name}: parity through HTTP"):
            golden = _answers(row, package, planned, url)
        with console.step(f"{planned.name}: load test"):
            _traffic(row, golden, url, seed)
        _stop(row, server)
    return row.finished()


def _attempt(row: _Row, gate: Any, step: Callable[[], _T]) -> _T:
    try:
        return step()
    except (MlosError, httpx.HTTPError) as error:
        row.failed(gate, str(error))
        raise _GateFailed from error


def _install(row: _Row, planned: PlannedModel, settings: Settings) -> Package:
    began = time.monotonic()
    try:
        installed = programs.install(planned.reference)
    except ParityError as error:
        row.failed("parity", error.message)
        raise _GateFailed from error
    except MlosError as error:
        row.failed("install", f"{error.message} ({error.code})")
        raise _GateFailed from error
    package = _attempt(row, "install", lambda: Store(settings.store).find(installed["digest"]))
    manifest = package.manifest
    row.facts |= {
        "reference": installed["reference"],
        "digest": package.digest,
        "weights": manifest.weights,
        "licence": manifest.licence,
        "tasks": manifest.tasks,
        "format": manifest.artifact.format,
        "precision": manifest.artifact.precision,
        "install": results.Install(
            cached=installed["cached"],
            seconds=installed["seconds"],
            total_seconds=round(time.monotonic() - began, 3),
            size_bytes=manifest.size,
        ),
    }
    row.passed("install", "cached" if installed["cached"] else "packaged")
    return package


def _describe(row: _Row, server: programs.Server) -> None:
    model = server.model
    row.facts |= {
        "engine": model["engine"],
        "mode": "userspace",
        "memory_bytes": model["memory_bytes"],
        "load": results.Load(
            worker_seconds=model["load_seconds"], ready_seconds=round(server.ready_seconds, 3)
        ),
    }


def _answers(row: _Row, package: Package, planned: PlannedModel, url: str) -> GoldenRecord:
    """Parity of the outputs and of the task results, both asked through HTTP."""
    manifest = package.manifest
    if manifest.golden is None:
        row.gates.append(
            results.Gate(name="parity", status="not run", detail="no reference: the file was served as it came")
        )
        raise _GateFailed
    golden: GoldenRecord = _attempt(
        row, "parity", lambda: GoldenRecord.load(package.path(manifest.golden or ""))
    )
    tolerance = tolerance_named(planned.entry.tolerance if planned.entry else _DEFAULT_TOLERANCE)
    answers: dict[str, Tensors] = _attempt(
        row, "parity", lambda: {case.name: _tensors(url, case) for case in golden.cases}
    )
    measures = _attempt(row, "parity", lambda: compare_outputs(golden, answers, tolerance))
    row.facts["parity"] = results.Parity(
        tolerance=tolerance.name,
        framework=golden.framework,
        at_install=manifest.parity,
        over_http=measures,
        cases=tuple(
            results.CaseParity(
                case=case.name, measures=compare_outputs(GoldenRecord((case,)), answers, tolerance)
            )
            for case in golden.cases
        ),
    )
    try:
        require(measures)
    except ParityError as error:
        row.failed("parity", error.message)
    else:
        row.passed("parity", "; ".join(describe(measure) for measure in measures))
    row.facts["results"] = checks = tuple(_check(url, case, tolerance) for case in golden.cases)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        row.failed("results", f"case {wrong[0].case}: {wrong[0].detail}")
    else:
        row.passed("results", f"{len(checks)} golden requests answered as the framework does")
    return golden


def _tensors(url: str, case: Case) -> Tensors:
    """The model's outputs for a golden case's tensors, asked in JSON as any client could."""
    body = {"inputs": {name: tensor.tolist() for name, tensor in case.inputs.items()}}
    result = _post(url, body | {"outputs": list(case.outputs)})["result"]
    return {name: np.asarray(result[name], dtype=case.outputs[name].dtype) for name in case.outputs}


def _check(url: str, case: Case, tolerance: Tolerance) -> results.ResultCheck:
    def outcome(detail: str) -> results.ResultCheck:
        return results.ResultCheck(case=case.name, task=case.task, passed=not detail, detail=detail)

    try:
        answer = _post(url, msgspec.to_builtins(case.request))
    except (MlosError, httpx.HTTPError) as error:
        return outcome(str(error))
    if answer["task"] != case.task:
        return outcome(f"answered as {answer['task']}")
    return outcome(str(compare_result(case, answer["result"], tolerance) or ""))


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    response = httpx.post(
        url,
        content=msgspec.json.encode(body),
        headers={"Content-Type": "application/json"},
        timeout=_REQUEST_SECONDS,
    )
    if response.is_error:
        raise MlosError(f"the server answered {response.status_code}: {response.text[:500]}")
    answer: dict[str, Any] = msgspec.json.decode(response.content)
    return answer


def _traffic(row: _Row, golden: GoldenRecord, url: str, seed: int) -> None:
    """A load; its own answers are held to the golden record too (at least 1 % of them)."""
    tolerance = tolerance_named(row.facts["parity"].tolerance)
    requests = [msgspec.to_builtins(case.request) for case in golden.cases]
    load = loading.single_stream(url, requests, seed)
    if load.errors or not load.samples_ms:
        row.failed("traffic", f"{load.errors} requests failed; the first: {load.first_error}")
        raise _GateFailed
    differences = [
        f"case {golden.cases[number].name}: {difference}"
        for number, answer in load.answers
        if (difference := compare_result(golden.cases[number], answer, tolerance))
    ]
    latency = results.Latency.measured(
        load.samples_ms,
        load.server_ms,
        seconds=round(load.seconds, 3),
        stages_ms={
            stage: round(median(stages[stage] for stages in load.stages_ms), 4) for stage in load.stages_ms[0]
        },
        warmup=tuple(load.warmup),
        stable=load.stable,
        checked=len(load.answers),
        steal_share=round(max(load.steal_share, 0.0), 5),
    )
    row.facts["latency"] = latency
    if differences:
        row.failed("traffic", f"{len(differences)} answers under load differ; the first: {differences[0]}")
    elif len(load.answers) < 0.01 * latency.n:
        row.failed("traffic", f"only {len(load.answers)} of {latency.n} answers could be checked")
    else:
        row.passed("traffic", f"{latency.n} requests, {latency.checked} answers checked, no error")
    detail = f"client {latency.client_median_ms:.2f} ms, stages {latency.server_median_ms:.2f} ms (medians)"
    if latency.stages_account_for_time:
        row.passed("stages", detail)
    else:
        row.failed("stages", f"{detail}: something outside the model is being timed")


def _stop(row: _Row, server: programs.Server) -> None:
    try:
        status = server.stop()
    except subprocess.TimeoutExpired:
        row.failed("shutdown", f"still running {programs.STOP_SECONDS:.0f} s after SIGTERM")
        return
    if status == 0:
        row.passed("shutdown", "drained and ended with status 0")
    else:
        row.failed("shutdown", f"ended with status {status}")
