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
from urllib.parse import quote

import httpx2
import msgspec
import numpy as np

from mlos.console import Console
from mlos.errors import AuthenticationError, HubError, MissingExtraError, MlosError, NoRoomError, ParityError
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
from mlos.validation.asking import Answer, ask
from mlos.validation.plan import PlannedModel

_T = TypeVar("_T")
_REQUEST_SECONDS = 300.0
_DEFAULT_TOLERANCE = "fp32"
_NOT_THE_MODELS_FAULT = (HubError, AuthenticationError, NoRoomError, MissingExtraError)
"""What keeps a model from being validated at all: nothing was found out about the model itself."""


class _GateFailed(Exception):  # noqa: N818  (no error: it carries a failed gate out of the row's steps)
    """A gate failed in a way that ends the row."""


class _Row:
    """A row being filled; what is known so far is never lost."""

    def __init__(self, planned: PlannedModel, seed: int) -> None:
        self._seed = seed
        self.facts: dict[str, Any] = {
            "name": planned.name,
            "requested": planned.reference,
            "weights_reason": planned.weights_reason,
        }
        self.pin(planned.reference)
        self.gates: list[results.Gate] = []

    def pin(self, reference: str) -> None:
        """Name the commands that show the same again, at this reference."""
        self.facts["commands"] = {
            "all": shlex.join(["mlos", "validate", "--model", reference, "--seed", str(self._seed)]),
            "install": shlex.join(["axon", "install", reference]),
            "serve": shlex.join(["mlos_core", "--model", reference]),
        }

    def passed(self, name: Any, detail: str) -> None:
        self.gates.append(results.Gate(name=name, status="passed", detail=detail))

    def failed(self, name: Any, detail: str) -> None:
        self.gates.append(results.Gate(name=name, status="failed", detail=detail))

    @property
    def sound(self) -> bool:
        """Whether no gate has failed yet."""
        return not any(gate.status == "failed" for gate in self.gates)

    def not_run(self, name: Any, detail: str) -> None:
        self.gates.append(results.Gate(name=name, status="not run", detail=detail))

    def finished(self) -> results.Row:
        """The row: failed if a gate failed; passed only if every gate was gone through and passed."""
        undone = [gate for gate in self.gates if gate.status != "passed"]
        first = next((gate for gate in undone if gate.status == "failed"), next(iter(undone), None))
        status: results.Status = first.status if first else "passed"
        reason = f"{first.name}: {first.detail}" if first else None
        return results.Row(**self.facts, status=status, reason=reason, gates=tuple(self.gates))


def validate(planned: PlannedModel, settings: Settings, seed: int, console: Console) -> results.Row:
    """Put one model through all gates; never raises for what the model does."""
    row = _Row(planned, seed)
    with suppress(_GateFailed), ExitStack() as running:
        package = _install(row, planned, settings)
        with console.step(f"{planned.name}: load"):
            server = _attempt(row, "load", lambda: running.enter_context(programs.serving(package.digest)))
        row.passed("load", f"ready after {server.ready_seconds:.1f} s")
        _describe(row, server)
        url = f"{server.url}/v1/models/{quote(server.model['id'], safe='/@:')}/inference"
        client = running.enter_context(httpx2.Client(timeout=_REQUEST_SECONDS, trust_env=False))
        with console.step(f"{planned.name}: parity through HTTP"):
            golden = _answers(row, package, planned, lambda body: ask(client, url, body).answer)
        if row.sound:
            with console.step(f"{planned.name}: load test"):
                _traffic(row, golden, url, seed)
        else:
            row.not_run("traffic", "the answers are wrong, so no speed is measured")
        _stop(row, server)
    return row.finished()


def not_reached(planned: PlannedModel, seed: int, reason: str) -> results.Row:
    """The row of a model whose turn did not come."""
    row = _Row(planned, seed)
    row.not_run("install", reason)
    return row.finished()


def _attempt(row: _Row, gate: Any, step: Callable[[], _T]) -> _T:
    try:
        return step()
    except MlosError as error:
        row.failed(gate, error.message)
        raise _GateFailed from error


def _install(row: _Row, planned: PlannedModel, settings: Settings) -> Package:
    began = time.monotonic()
    try:
        installed = programs.install(planned.reference)
    except ParityError as error:
        row.failed("parity", error.message)
        raise _GateFailed from error
    except _NOT_THE_MODELS_FAULT as error:
        row.not_run("install", error.message + (f" (try: {error.hint})" if error.hint else ""))
        raise _GateFailed from error
    except MlosError as error:
        row.failed("install", f"{error.message} ({error.code})")
        raise _GateFailed from error
    row.pin(installed["reference"])
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
        "memory_bytes": model["memory_bytes"],
        "load": results.Load(
            worker_seconds=model["load_seconds"], ready_seconds=round(server.ready_seconds, 3)
        ),
    }


_Ask = Callable[[dict[str, Any]], Answer]


def _answers(row: _Row, package: Package, planned: PlannedModel, ask: _Ask) -> GoldenRecord:
    """Parity of the outputs and of the task results, both asked through HTTP."""
    manifest = package.manifest
    if manifest.golden is None:
        row.not_run("parity", "no reference: the file is served as it came, no framework answers for it")
        raise _GateFailed
    folder = package.path(manifest.golden)
    golden: GoldenRecord = _attempt(row, "parity", lambda: GoldenRecord.load(folder))
    tolerance = tolerance_named(_tolerance(package, planned))
    answers: dict[str, Tensors] = _attempt(
        row, "parity", lambda: {case.name: _tensors(row, package, ask, case) for case in golden.cases}
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
    row.facts["results"] = checks = tuple(_check(ask, case, tolerance) for case in golden.cases)
    wrong = [check for check in checks if not check.passed]
    if wrong:
        row.failed("results", f"case {wrong[0].case}: {wrong[0].detail}")
    else:
        row.passed("results", f"{len(checks)} golden requests answered as the framework does")
    return golden


def _tolerance(package: Package, planned: PlannedModel) -> str:
    """The catalogue's for the model; outside the catalogue, the one its install was held to."""
    if planned.entry is not None:
        return planned.entry.tolerance
    return next((measure.tolerance for measure in package.manifest.parity), _DEFAULT_TOLERANCE)


def _tensors(row: _Row, package: Package, ask: _Ask, case: Case) -> Tensors:
    """The model's outputs for a golden case's tensors, asked in JSON as any client could."""
    inputs = {name: tensor.tolist() for name, tensor in case.inputs.items()}
    answer = ask({"inputs": inputs, "outputs": list(case.outputs)})
    if answer.digest != package.digest:
        raise ParityError(
            f"the server answered with package {answer.digest[:12]}, not {package.digest[:12]}",
            field="digest",
            expected=package.digest,
            got=answer.digest,
        )
    row.facts |= {"engine": answer.engine, "precision": answer.precision, "mode": answer.mode}
    try:
        return {
            name: np.asarray(answer.result[name], dtype=reference.dtype)
            for name, reference in case.outputs.items()
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ParityError(
            f"case {case.name!r} was not answered with tensors: {type(error).__name__}: {error}"
        ) from error


def _check(ask: _Ask, case: Case, tolerance: Tolerance) -> results.ResultCheck:
    def outcome(detail: str) -> results.ResultCheck:
        return results.ResultCheck(case=case.name, task=case.task, passed=not detail, detail=detail)

    try:
        answer = ask(msgspec.to_builtins(case.request))
    except MlosError as error:
        return outcome(error.message)
    if answer.task != case.task:
        return outcome(f"answered as {answer.task}")
    return outcome(str(compare_result(case, answer.result, tolerance) or ""))


def _traffic(row: _Row, golden: GoldenRecord, url: str, seed: int) -> None:
    """A load; its own answers are held to the golden record too (at least 1 % of them)."""
    tolerance = tolerance_named(row.facts["parity"].tolerance)
    requests = [msgspec.to_builtins(case.request) for case in golden.cases]
    load = loading.single_stream(url, requests, seed)
    if load.errors or not load.samples_ms:
        row.failed(
            "traffic", f"{load.errors} requests failed; the first: {load.first_error or 'none answered'}"
        )
        raise _GateFailed
    differences = [
        f"case {golden.cases[number].name}: {difference}"
        for number, answer in load.answers
        if (difference := compare_result(golden.cases[number], answer, tolerance))
    ]
    latency = results.Latency.measured(
        load.samples_ms,
        [sum(stages.values()) for stages in load.stages_ms],
        seconds=round(load.seconds, 3),
        stages_ms={
            stage: round(median(stages.get(stage, 0.0) for stages in load.stages_ms), 4)
            for stage in load.stages_ms[0]
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
