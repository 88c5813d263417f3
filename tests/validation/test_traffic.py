"""The load gates, against a server that misbehaves in one way at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from tests.validation.v1_server import Reply, answer, events, generated, serving

from mlos.console import Console, OutputFormat, ProgressMode
from mlos.model import InferenceRequest
from mlos.parity import Case, GoldenRecord, tolerance_named
from mlos.settings import Settings
from mlos.validation import load as loading
from mlos.validation import traffic
from mlos.validation.load import Load
from mlos.validation.plan import PlannedModel
from mlos.validation.results import Row
from mlos.validation.rows import GateFailed, OpenRow, Terms
from mlos.validation.tiers import LENGTHS, Length, Tier

EXPLAINED = {"compute": 1000.0}
"""A stage so long that the server's stages always explain the client's time, however busy this machine is."""
EMBEDDING = {"embedding": [0.5], "dimensions": 1}
GENERATED = msgspec.json.decode(generated("a b"))["result"]


def case(name: str, task: str, result: Any, **request: Any) -> Case:
    return Case(name, InferenceRequest(**request), task, {}, {}, result)


EMBEDS = (
    case("short", "embeddings", EMBEDDING, text="one two three"),
    case("long", "embeddings", EMBEDDING, text="four five six seven"),
)
GENERATES = (
    case("story", "text-generation", GENERATED, prompt="once upon a time", parameters={"max_tokens": 2}),
    case("question", "chat", GENERATED, messages=[{"role": "user", "content": "who are you"}]),
)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LENGTHS, "smoke", Length(0.1, 0, 0.01, warmup_seconds=1, budget_seconds=10))
    monkeypatch.setitem(LENGTHS, "release", Length(0.1, 64, 0.01))


def measured(reply: Reply, cases: tuple[Case, ...], tier: Tier = "smoke") -> Row:
    planned = PlannedModel("model", "hf/some/model", None, "the reference was given", None)
    terms = Terms(Settings(), tier, 5, Console(OutputFormat.QUIET, ProgressMode.NONE), ProgressMode.NONE)
    row = OpenRow(planned, terms)
    with serving(reply) as (url, _):
        subject = traffic.Subject("model", url, GoldenRecord(cases), tolerance_named("fp32"))
        try:
            traffic.measure(row, subject, terms)
        except GateFailed:
            assert not row.sound
    return row.finished()


def verdicts(row: Row) -> dict[str, str]:
    return {gate.name: gate.status for gate in row.gates}


def talking(*parts: str, text: str = "a b", usage: dict[str, int] | None = None) -> Reply:
    """A server that generates ``text``, streamed in ``parts`` where it is asked to."""
    counted = {"prompt_tokens": 3, "completion_tokens": 2} if usage is None else usage
    result = {"text": text, "finish_reason": "length", "usage": counted}
    whole = answer(task="chat", result=result, timings_ms=EXPLAINED)
    stream = events(*(("part", msgspec.json.encode({"text": part})) for part in parts), ("answer", whole))
    return lambda body: (200, stream if body.get("stream") else generated("a b", timings_ms=EXPLAINED))


def test_a_sound_model_passes_and_its_numbers_can_be_computed_anew() -> None:
    row = measured(lambda body: (200, answer(timings_ms=EXPLAINED)), EMBEDS)
    assert verdicts(row) == {"traffic": "passed", "stages": "passed"}
    assert row.latency is not None
    assert row.latency.intervals == {}, "the smoke tier claims nothing"
    assert set(row.latency.by_case(row.latency.samples_ms)) == {"short", "long"}
    assert row.latency.checked == len(row.latency.repeated)
    assert sum(window.n for window in row.latency.windows) == row.latency.n
    assert row.latency.typical_ms == {"read": 0.25, "compute": 1000.0}
    assert row.latency.typical_client_ms is not None
    assert row.generation is None


def test_the_release_tier_has_its_samples_and_their_intervals() -> None:
    row = measured(lambda body: (200, answer(timings_ms=EXPLAINED)), EMBEDS, "release")
    assert row.latency is not None
    assert row.latency.n >= 64
    assert {"p50_ms", "p90_ms", "throughput"} <= row.latency.intervals.keys()


def test_a_wrong_answer_under_load_fails() -> None:
    asked: list[dict[str, Any]] = []

    def drifting(body: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(body)
        return 200, answer() if len(asked) < 30 else answer(result={"embedding": [0.6], "dimensions": 1})

    row = measured(drifting, EMBEDS, "release")
    assert verdicts(row)["traffic"] == "failed"
    assert "embedding[0] differs" in str(row.reason)
    assert row.latency is not None, "what was measured is kept"


def test_a_failing_request_fails_and_ends_the_load() -> None:
    row = measured(lambda body: (503, b"full"), EMBEDS)
    assert verdicts(row) == {"traffic": "failed"}
    assert "503: full" in str(row.reason)


def test_time_that_no_stage_explains_fails() -> None:
    def waiting(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.02)
        return 200, answer()

    row = measured(waiting, EMBEDS)
    assert verdicts(row) == {"traffic": "passed", "stages": "failed"}
    assert "something outside the model" in str(row.reason)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each SingleStream run that begins."""
    begun: list[str] = []
    real = loading.single_stream

    def counted(url: str, *rest: Any) -> Load:
        begun.append(url)
        return real(url, *rest)

    monkeypatch.setattr(loading, "single_stream", counted)
    return begun


def test_time_lost_once_is_measured_again(runs: list[str]) -> None:
    def disturbed(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.02 if len(runs) == 1 else 0)
        return 200, answer() if len(runs) == 1 else answer(timings_ms=EXPLAINED)

    row = measured(disturbed, EMBEDS)
    assert verdicts(row) == {"traffic": "passed", "stages": "passed"}
    assert len(runs) == 2
    assert ", the first time client" in next(str(gate.detail) for gate in row.gates if gate.name == "stages")


def test_a_wrong_answer_is_not_forgotten_by_measuring_again(runs: list[str]) -> None:
    def disturbed(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.02 if len(runs) == 1 else 0)
        wrong = {"embedding": [0.6], "dimensions": 1}
        return 200, answer(result=wrong) if len(runs) == 1 else answer(timings_ms=EXPLAINED)

    row = measured(disturbed, EMBEDS)
    assert verdicts(row) == {"traffic": "failed", "stages": "passed"}
    assert "embedding[0] differs" in str(row.reason)


def test_a_cache_of_answers_fails() -> None:
    known = {text for one in EMBEDS if (text := one.request.text)}

    def remembering(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0 if body["text"] in known else 0.04)  # far above what a busy machine adds
        return 200, answer()

    row = measured(remembering, EMBEDS, "release")
    assert verdicts(row)["traffic"] == "failed"
    assert "a cache?" in str(row.reason)


def test_a_generation_that_ends_early_is_no_cache_and_a_remembered_prompt_is_one() -> None:
    known = [msgspec.to_builtins(one.request) for one in GENERATES]
    stream = talking("a ", "b")

    def early(body: dict[str, Any]) -> tuple[int, bytes | Sequence[bytes]]:
        time.sleep(0 if body in known else 0.04)  # streamed requests are never among the known ones
        return stream(body)

    def remembering(body: dict[str, Any]) -> tuple[int, bytes | Sequence[bytes]]:
        asked = {key: value for key, value in body.items() if key != "stream"}
        time.sleep(0 if asked in known else 0.04)
        return stream(body)

    assert measured(early, GENERATES, "release").status == "passed"
    row = measured(remembering, GENERATES, "release")
    assert verdicts(row) == {"traffic": "passed", "stages": "passed", "generation": "failed"}
    assert "a repeated prompt" in str(row.reason)


def test_what_generates_is_streamed_too() -> None:
    row = measured(talking("a ", "b"), GENERATES, "release")
    assert verdicts(row) == {"traffic": "passed", "stages": "passed", "generation": "passed"}
    assert row.generation is not None
    assert row.generation.n >= 64
    assert set(row.generation.completion_tokens) == {2}
    assert set(row.generation.case_names) == {"story", "question"}
    assert {"ttft_p50_ms", "tokens_per_second"} <= row.generation.intervals.keys()


def test_only_what_comes_token_by_token_is_streamed() -> None:
    several = case("several", "text2text-generation", [GENERATED, GENERATED], texts=["one two", "three four"])
    beams = case("beams", "text2text-generation", GENERATED, text="five six", parameters={"num_beams": 4})

    def either(body: dict[str, Any]) -> tuple[int, bytes | Sequence[bytes]]:
        if "text" not in body and "texts" not in body:
            return talking("a ", "b")(body)
        if body.get("stream"):
            return 400, b"no stream"
        if "num_beams" in body.get("parameters", {}):
            return 200, generated("a b", timings_ms=EXPLAINED)
        changes = {"result": [GENERATED, GENERATED]} if "texts" in body else {}
        return 200, answer(timings_ms=EXPLAINED, **changes)

    row = measured(either, (*EMBEDS, several, beams, *GENERATES))
    assert row.status == "passed"
    assert row.generation is not None
    assert row.generation.case_names == ("story", "question")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (talking("a"), "parts of a stream are not its answer"),
        (talking(), "had no part or no usage"),
        (talking("a b", usage={}), "had no part or no usage"),
        (talking("a c", text="a c"), "differ"),
    ],
)
def test_a_stream_that_is_wrong_fails(reply: Reply, said: str) -> None:
    row = measured(reply, GENERATES)
    assert verdicts(row) == {"traffic": "passed", "stages": "passed", "generation": "failed"}
    assert said in str(row.reason)


def test_a_refused_stream_fails() -> None:
    def refusing(body: dict[str, Any]) -> tuple[int, bytes]:
        return (400, b"no") if body.get("stream") else (200, generated("a b", timings_ms=EXPLAINED))

    row = measured(refusing, GENERATES)
    assert verdicts(row)["generation"] == "failed"
    assert "400: no" in str(row.reason)
