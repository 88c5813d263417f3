"""One model through all its gates: install, load, parity through HTTP, task results, traffic, stages, shutdown.

Everything is done as a user does it, with our programs as processes and HTTP between. A gate that fails ends
what cannot go on without it; what was found until then stays in the row.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

import httpx2
import msgspec
import numpy as np

from mlos.errors import AuthenticationError, HubError, MissingExtraError, MlosError, NoRoomError, ParityError
from mlos.host.environment import record
from mlos.model import Tensors
from mlos.parity import (
    Case,
    GoldenRecord,
    Tolerance,
    compare_outputs,
    compare_result,
    describe,
    require,
    tolerance_of,
)
from mlos.parity.record import TENSORS
from mlos.store import Package, Store
from mlos.tune import load as load_tuning
from mlos.validation import programs, results, traffic
from mlos.validation.asking import Answer, ask
from mlos.validation.plan import PlannedModel
from mlos.validation.rows import GateFailed, OpenRow, Terms

_REQUEST_SECONDS = 300.0
_DEFAULT_TOLERANCE = "fp32"
_BYTES, _CHARACTERS = 4, 24
"""What a number takes of a tensor in single precision, and at most of a body."""
_NOT_THE_MODELS_FAULT = (HubError, AuthenticationError, NoRoomError, MissingExtraError)
"""What keeps a model from being validated at all: nothing was found out about the model itself."""


def validate(planned: PlannedModel, terms: Terms) -> results.Row:
    """Put one model through all gates; never raises for what the model does."""
    row, step = OpenRow(planned, terms), terms.console.step
    with suppress(GateFailed), ExitStack() as running:
        package = _install(row, planned, terms)
        if terms.began is not None and package.record.installed_at >= terms.began:
            running.callback(_remove, package, terms)
        with step(f"{planned.name}: load"):
            server = row.attempt(
                "load", lambda: running.enter_context(programs.serving(package.digest, *_room(package, terms)))
            )
        row.passed("load", f"ready after {server.ready_seconds:.1f} s")
        _describe(row, server, package, terms)
        url = f"{server.url}/v1/models/{quote(server.model['id'], safe='/@:')}/inference"
        client = running.enter_context(httpx2.Client(timeout=_REQUEST_SECONDS, trust_env=False))
        with step(f"{planned.name}: parity through HTTP"):
            golden, tolerance = _answers(row, package, planned, lambda body: ask(client, url, body).answer)
        if row.sound:
            with suppress(GateFailed):
                subject = traffic.Subject(planned.name, url, golden, tolerance, _beams(package))
                traffic.measure(row, subject, terms)
            _peak(row, server)
        else:
            row.not_run("traffic", "the answers are wrong, so no speed is measured")
        _stop(row, server)
    return row.finished()


def not_reached(planned: PlannedModel, terms: Terms, reason: str) -> results.Row:
    """The row of a model whose turn did not come."""
    row = OpenRow(planned, terms)
    row.not_run("install", reason)
    return row.finished()


def _install(row: OpenRow, planned: PlannedModel, terms: Terms) -> Package:
    began = time.monotonic()
    try:
        installed = programs.install(planned.reference, terms.progress)
    except ParityError as error:
        row.failed("parity", error.message)
        raise GateFailed from error
    except _NOT_THE_MODELS_FAULT as error:
        row.not_run("install", error.message + (f" (try: {error.hint})" if error.hint else ""))
        raise GateFailed from error
    except MlosError as error:
        row.failed("install", f"{error.message} ({error.code})")
        raise GateFailed from error
    row.pin(installed["reference"])
    package = row.attempt("install", lambda: Store(terms.settings.store).find(installed["digest"]))
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


def _remove(package: Package, terms: Terms) -> None:
    """Make room for the next model; where that fails, the row stands and the person hears of it."""
    try:
        programs.remove(package.reference)
    except MlosError as error:
        terms.console.warn(f"{package.name} stays installed: {error.message}")


def _describe(row: OpenRow, server: programs.Server, package: Package, terms: Terms) -> None:
    model, served = server.model, row.attempt("load", server.served)
    row.facts |= {
        "engine": model["engine"],
        "serving": results.Serving(
            **{name: served[name] for name in ("engine", "precision", "threads", "digest", "batch", "chosen")},
            tuning=row.attempt("load", lambda: load_tuning(terms.settings.home, record().id, package.digest)),
        ),
        "memory_bytes": model["memory_bytes"],
        "load": results.Load(
            worker_seconds=model["load_seconds"],
            ready_seconds=round(server.ready_seconds, 3),
            stages={name: round(seconds, 4) for name, seconds in (model.get("load_stages") or {}).items()},
        ),
    }


def _peak(row: OpenRow, server: programs.Server) -> None:
    """How much memory the worker came to hold under load, where the server says it."""
    row.facts["peak_memory_bytes"] = row.attempt("traffic", server.now).get("peak_memory_bytes")


def _room(package: Package, terms: Terms) -> list[str]:
    """The flag that lets pass the golden tensors of a model which sees large images, written as JSON."""
    golden = package.manifest.golden
    size = (package.path(golden) / TENSORS).stat().st_size if golden is not None else 0
    most = size // _BYTES * _CHARACTERS
    return ["--max-body-bytes", str(most)] if most > terms.settings.max_body_bytes else []


_Ask = Callable[[dict[str, Any]], Answer]


def _answers(
    row: OpenRow, package: Package, planned: PlannedModel, ask: _Ask
) -> tuple[GoldenRecord, Tolerance]:
    """Parity of the outputs and of the task results, both asked through HTTP; what they were held to."""
    manifest = package.manifest
    if manifest.golden is None:
        row.not_run("parity", "no reference: the file is served as it came, no framework answers for it")
        raise GateFailed
    folder = package.path(manifest.golden)
    golden: GoldenRecord = row.attempt("parity", lambda: GoldenRecord.load(folder))
    tolerance = row.attempt("parity", lambda: tolerance_of(manifest.artifact, _named(package, planned)))
    answers: dict[str, Tensors] = row.attempt(
        "parity", lambda: {case.name: _tensors(row, package, ask, case) for case in golden.cases}
    )
    measures = row.attempt("parity", lambda: compare_outputs(golden, answers, tolerance))
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
        partly = sum(bool(check.detail) for check in checks)
        aside = f", {partly} of them compared in part" if partly else ""
        row.passed("results", f"{len(checks)} golden requests answered as the framework does{aside}")
    return golden, tolerance


def _named(package: Package, planned: PlannedModel) -> str:
    """The catalogue's for the model; outside the catalogue, the one its install was held to."""
    if planned.entry is not None:
        return planned.entry.tolerance
    return next((measure.tolerance for measure in package.manifest.parity), _DEFAULT_TOLERANCE)


def _tensors(row: OpenRow, package: Package, ask: _Ask, case: Case) -> Tensors:
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
    def outcome(problem: str) -> results.ResultCheck:
        detail = problem or _left_out(case, tolerance)
        return results.ResultCheck(case=case.name, task=case.task, passed=not problem, detail=detail)

    try:
        answer = ask(msgspec.to_builtins(case.request))
    except MlosError as error:
        return outcome(error.message)
    if answer.task != case.task:
        return outcome(f"answered as {answer.task}")
    return outcome(str(compare_result(case, answer.result, tolerance) or ""))


def _left_out(case: Case, tolerance: Tolerance) -> str:
    """What a passed result was not compared in; nothing where it equals the framework's altogether."""
    if tolerance.atol is None and case.task in traffic.GENERATING:
        return "as many prompt tokens as the framework's; the text is held by the divergence of the logits"
    if tolerance.atol is None:
        return "as the framework's, but for rankings and scores, which the argmax agreement holds"
    return ""


def _beams(package: Package) -> int:
    """How many sequences the package's own search keeps of a text."""
    said = package.manifest.preprocessing.get("text2text-generation", {}).get("generation", {})
    beams: int = said.get("num_beams", 1)
    return beams


def _stop(row: OpenRow, server: programs.Server) -> None:
    try:
        status = server.stop()
    except subprocess.TimeoutExpired:
        row.failed("shutdown", f"still running {programs.STOP_SECONDS:.0f} s after SIGTERM")
        return
    if status == 0:
        row.passed("shutdown", "drained and ended with status 0")
    else:
        row.failed("shutdown", f"ended with status {status}")
