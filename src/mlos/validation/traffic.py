"""The load gates: a model's answers under load, where their time goes, and how fast it generates.

A load's own answers are held to the golden record too (at least 1 % of them); numbers get intervals where the
tier claims any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import msgspec

from mlos.parity import Case, GoldenRecord, Tolerance, compare_result
from mlos.validation import load as loading
from mlos.validation import stats
from mlos.validation.load import Load, Query, Sample
from mlos.validation.rows import GateFailed, OpenRow, Terms
from mlos.validation.tiers import LENGTHS, claims_numbers
from mlos.validation.timing import Generation, Latency

GENERATING = frozenset({"chat", "text-generation", "text2text-generation"})
"""Tasks whose answers are made token by token, and can be streamed."""
_CHECKED_SHARE = 0.01

_Scenario = Callable[..., Load]


@dataclass(frozen=True)
class Subject:
    """The model under load: its name, its inference address, and what its answers are held to."""

    name: str
    url: str
    golden: GoldenRecord
    tolerance: Tolerance
    beams: int = 1
    """How many a request has that names no number."""

    def streaming(self) -> Subject:
        """The same with those golden requests alone whose answers come token by token."""
        cases = tuple(case for case in self.golden.cases if _streams(case, self.beams))
        return replace(self, golden=GoldenRecord(cases, self.golden.framework))


def _streams(case: Case, beams: int) -> bool:
    """Whether one text is generated left to right; several texts, or a beam's best, come at the end."""
    one = isinstance(case.result, dict) and case.request.parameters.get("num_beams", beams) == 1
    return case.task in GENERATING and one


def measure(row: OpenRow, subject: Subject, terms: Terms) -> None:
    """SingleStream, and Generation where the model generates; what was found goes into the row.

    Raises:
        GateFailed: if requests failed.
    """
    _single_stream(row, subject, terms)
    streaming = subject.streaming()
    if streaming.golden.cases:
        _generation(row, streaming, terms)


def _single_stream(row: OpenRow, subject: Subject, terms: Terms) -> None:
    runs = [_timed(row, subject, terms)]
    if not runs[0][1].stages_account_for_time:
        # What another process does to this host passes; what our own server or client waits for comes back.
        runs.append(_timed(row, subject, terms))
    latency = row.facts["latency"] = runs[-1][1]
    problem = next((wrong for load, _ in runs if (wrong := _wrong_answers(load, subject))), None)
    # Generations end where they end: their length hides what repeating saves, so their prompts are compared.
    generates = any(case.task in GENERATING for case in subject.golden.cases)
    if problem is None and claims_numbers(terms.tier) and not generates and latency.answers_from_memory:
        problem = f"a repeated request takes {latency.repeat_ratio:.2f} of the time of a varied one: a cache?"
    if problem is not None:
        row.failed("traffic", problem)
    else:
        row.passed("traffic", f"{latency.n} requests, {latency.checked} answers checked, no error")
    detail = ", the first time ".join(_account(each) for _, each in reversed(runs))
    if latency.stages_account_for_time:
        row.passed("stages", detail)
    else:
        row.failed("stages", f"{detail}: something outside the model is being timed")


def _timed(row: OpenRow, subject: Subject, terms: Terms) -> tuple[Load, Latency]:
    """One SingleStream run, and what it says of the latency."""
    load = _run("traffic", loading.single_stream, row, subject, terms)
    times = [sample.taken_ms for sample in load.samples]
    typical = [load.samples[place] for place in stats.middle_half(times)]
    return load, Latency.measured(
        times,
        [sum(sample.stages_ms.values()) for sample in load.samples],
        claimed=claims_numbers(terms.tier),
        stages_ms=_stages(load.samples, median),
        typical_ms=_stages(typical, fmean),
        typical_client_ms=round(fmean(sample.taken_ms for sample in typical), 4),
        **_common(load, subject),
    )


def _account(latency: Latency) -> str:
    return f"client {latency.client_median_ms:.2f} ms, stages {latency.server_median_ms:.2f} ms (medians)"


def _generation(row: OpenRow, subject: Subject, terms: Terms) -> None:
    load = _run("generation", loading.generation, row, subject, terms)
    uncounted = [
        sample
        for sample in load.samples
        if sample.first_ms is None or not {"prompt_tokens", "completion_tokens"} <= sample.usage.keys()
    ]
    if uncounted:
        row.failed("generation", f"{len(uncounted)} of {len(load.samples)} streams had no part or no usage")
        raise GateFailed
    found = Generation.measured(
        claimed=claims_numbers(terms.tier),
        first_ms=[sample.first_ms for sample in load.samples],
        total_ms=[sample.taken_ms for sample in load.samples],
        prompt_tokens=[sample.usage["prompt_tokens"] for sample in load.samples],
        completion_tokens=[sample.usage["completion_tokens"] for sample in load.samples],
        **_common(load, subject),
    )
    row.facts["generation"] = found
    problem = _wrong_answers(load, subject)
    if problem is None and load.torn is not None:
        problem = f"the parts of a stream are not its answer: {load.torn}"
    if problem is None and claims_numbers(terms.tier) and found.answers_from_memory:
        problem = f"a repeated prompt takes {found.repeat_ratio:.2f} of the time of a varied one: a cache?"
    if problem is not None:
        row.failed("generation", problem)
    else:
        row.passed(
            "generation",
            f"{found.n} streams, {found.checked} answers checked, {sum(found.completion_tokens)} tokens",
        )


def _run(gate: Any, scenario: _Scenario, row: OpenRow, subject: Subject, terms: Terms) -> Load:
    """Run a scenario with its progress shown; none may fail.

    Raises:
        GateFailed: if a request failed, or none was answered.
    """
    queries = [
        Query(msgspec.to_builtins(case.request), case.task in GENERATING) for case in subject.golden.cases
    ]
    length = LENGTHS[terms.tier]
    with terms.console.step(f"{subject.name}: {gate}", total=length.timed_seconds, unit="s") as step:
        load = scenario(subject.url, queries, terms.seed, length, step.advance)
    if load.errors or not load.samples:
        row.failed(gate, f"{load.errors} requests failed; the first: {load.first_error or 'none answered'}")
        raise GateFailed
    return load


def _stages(samples: Sequence[Sample], typical: Callable[[list[float]], float]) -> dict[str, float]:
    """One number for each stage in ms, for example its median."""
    return {
        stage: round(typical([sample.stages_ms.get(stage, 0.0) for sample in samples]), 4)
        for stage in samples[0].stages_ms
    }


def _common(load: Load, subject: Subject) -> dict[str, Any]:
    return {
        "seconds": round(load.seconds, 3),
        "warmup": tuple(load.warmup),
        "windows": tuple(load.windows),
        "stable": load.stable,
        "checked": load.checked,
        "steal_share": round(max(load.steal_share, 0.0), 5),
        "case_names": tuple(case.name for case in subject.golden.cases),
        "cases": tuple(sample.number for sample in load.samples),
        "repeated": tuple(place for place, sample in enumerate(load.samples) if sample.repeated),
    }


def _wrong_answers(load: Load, subject: Subject) -> str | None:
    cases = subject.golden.cases
    differences = [
        f"case {cases[number].name}: {difference}"
        for number, answer in load.answers
        if (difference := compare_result(cases[number], answer, subject.tolerance))
    ]
    if differences:
        return f"{len(differences)} answers under load differ; the first: {differences[0]}"
    if load.checked < _CHECKED_SHARE * len(load.samples):
        return f"only {load.checked} of {len(load.samples)} answers could be checked"
    return None
