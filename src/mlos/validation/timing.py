"""What a load run found, as it stands in a result: raw samples whole, and what is derived from them.

Derived numbers are stored for readers and checked against the samples when read; intervals are stored as they
were computed, so that a reader needs no scipy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mlos.validation import intervals, stats
from mlos.validation.intervals import Interval

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
STEAL_LIMIT = 0.01
"""Share of the timed window's processor time that the hypervisor may take before the window is flagged."""
REPEAT_LIMIT = 0.9
"""How fast the same request may be when repeated, as a share of the time that varied ones take."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(_Frozen):
    """One window of whole rounds: requests, throughput in requests per second, and 90th percentile in ms."""

    n: int
    throughput: float
    p90_ms: float


class _Measured(_Frozen):
    """What every scenario has: how long, how many, and what speaks against its numbers."""

    seconds: float
    n: int
    throughput: float | None = None
    """Answers per second over the whole timed stretch, one client."""
    intervals: dict[str, Interval] = {}
    """By the name of the number; empty where the tier claims none."""
    warmup: tuple[Window, ...]
    windows: tuple[Window, ...] = ()
    """The timed stretch, window by window."""
    stable: bool
    errors: int = 0
    first_error: str | None = None
    checked: int
    """Answers of the load itself that were compared with the golden record."""
    steal_share: float
    """Share of the window's processor time taken by the hypervisor."""
    case_names: tuple[str, ...] = ()
    cases: tuple[int, ...] = ()
    """For each sample, which of ``case_names`` was asked; empty in results of schema 1."""
    repeated: tuple[int, ...] = ()
    """Places of the samples whose request was the golden one as it stands; the others were varied."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Why these numbers should not be compared with others; empty where nothing speaks against it."""
        found = [] if self.stable else ["UNSTABLE: warm-up windows did not agree within 10 %"]
        if self.steal_share > STEAL_LIMIT:
            found.append(f"steal {self.steal_share:.1%} of processor time, above {STEAL_LIMIT:.0%}")
        return tuple(found)

    def by_case(self, times: Sequence[float]) -> dict[str, list[float]]:
        """``times`` (one per sample) by the name of the golden request that was asked."""
        found: dict[str, list[float]] = {name: [] for name in self.case_names}
        for number, time in zip(self.cases, times, strict=False):
            found[self.case_names[number]].append(time)
        return {name: samples for name, samples in found.items() if samples}

    def _relative(self, times: Sequence[float]) -> tuple[list[float], list[float]]:
        """Times of repeated and of varied requests, each over the median of its own golden request."""
        medians = {name: median(samples) for name, samples in self.by_case(times).items()}
        again = set(self.repeated)
        repeated: list[float] = []
        varied: list[float] = []
        for place, (number, time) in enumerate(zip(self.cases, times, strict=False)):
            (repeated if place in again else varied).append(time / (medians[self.case_names[number]] or 1.0))
        return repeated, varied

    def _repeat_ratio(self, times: Sequence[float]) -> float | None:
        repeated, varied = self._relative(times)
        return median(repeated) / median(varied) if repeated and varied else None

    def _answers_from_memory(self, times: Sequence[float]) -> bool:
        """Whether repeated requests are more than 10 % faster than varied ones, their intervals apart.

        Raises:
            MissingExtraError: if scipy is not installed.
        """
        one, other = (intervals.of_percentile(side, 50) for side in self._relative(times))
        return one is not None and other is not None and one.high < REPEAT_LIMIT * other.low

    @model_validator(mode="after")
    def _places_exist(self) -> _Measured:
        if self.cases and (len(self.cases) != self.n or max(self.cases) >= len(self.case_names)):
            raise ValueError("cases do not belong to the samples")
        if any(not 0 <= place < self.n for place in self.repeated):
            raise ValueError("repeated names a sample that is not there")
        return self


class Latency(_Measured):
    """One SingleStream run. ``samples_ms`` are the client's end-to-end times in order, ``server_ms`` the sums
    of the stages that the server reported for the same requests; ``stages_ms`` are the medians of those stages.

    Medians of parts do not add up to the median of the whole. What does are ``typical_ms``: the means of the
    stages over the middle half of the requests by end-to-end time, whose own mean is ``typical_client_ms``
    (empty and absent in results of schema 1).
    """

    scenario: Literal["SingleStream"] = "SingleStream"
    samples_ms: tuple[float, ...] = Field(min_length=1)
    server_ms: tuple[float, ...]
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    stages_ms: dict[str, float]
    typical_ms: dict[str, float] = {}
    typical_client_ms: float | None = None
    client_median_ms: float
    server_median_ms: float
    excess_ms: float
    excess_allowed_ms: float

    @classmethod
    def measured(
        cls, samples_ms: Iterable[float], server_ms: Iterable[float], *, claimed: bool = False, **rest: Any
    ) -> Latency:
        """A latency record whose derived numbers are computed from the samples, with intervals if ``claimed``.

        Raises:
            MissingExtraError: if intervals are asked for and scipy is not installed.
        """
        samples = tuple(round(sample, 4) for sample in samples_ms)
        sums = tuple(round(sample, 4) for sample in server_ms)
        derived = _latency(samples, sums)
        found: dict[str, Interval | None] = {}
        if claimed:
            found = {
                f"p{p:g}_ms": intervals.of_percentile(samples, p)
                for p in PERCENTILES
                if derived[f"p{p:g}_ms"] is not None
            }
            found["throughput"] = _throughput(rest.get("windows", ()))
        return cls(
            samples_ms=samples,
            server_ms=sums,
            throughput=_per_second(len(samples), rest["seconds"]),
            intervals=_known(found),
            **derived,
            **rest,
        )

    @model_validator(mode="after")
    def _agrees_with_samples(self) -> Latency:
        if len(self.server_ms) != len(self.samples_ms):
            raise ValueError("server_ms and samples_ms differ in length")
        _agree(self, _latency(self.samples_ms, self.server_ms))
        return self

    @property
    def stages_account_for_time(self) -> bool:
        """Whether the client waited for nothing but what the server's stages explain."""
        return self.excess_ms <= self.excess_allowed_ms

    @property
    def repeat_ratio(self) -> float | None:
        """Time of repeated requests over that of varied ones, medians; below 1 where repeating pays."""
        return self._repeat_ratio(self.samples_ms)

    @property
    def answers_from_memory(self) -> bool:
        """Whether repeated requests are faster than a server without a cache of answers may be."""
        return self._answers_from_memory(self.samples_ms)


class Generation(_Measured):
    """One run of streamed generations. Per request, as the client saw it: ``first_ms`` until the first part of
    the answer came, ``total_ms`` until the whole was there, and the tokens of prompt and completion as the
    server counts them.

    Time per output token is ``(total - first) / (completion tokens - 1)``, over requests of two tokens and
    more. ``tokens_per_second`` is all completion tokens over all end-to-end time, ``prefill_per_second`` all
    prompt tokens over all time to the first part (queue and tokenizing included).
    """

    scenario: Literal["Generation"] = "Generation"
    first_ms: tuple[float, ...] = Field(min_length=1)
    total_ms: tuple[float, ...]
    prompt_tokens: tuple[int, ...]
    completion_tokens: tuple[int, ...]
    ttft_p50_ms: float | None
    ttft_p90_ms: float | None
    ttft_p99_ms: float | None
    tpot_p50_ms: float | None
    tpot_p90_ms: float | None
    tpot_p99_ms: float | None
    tokens_per_second: float
    prefill_per_second: float

    @classmethod
    def measured(cls, *, claimed: bool = False, **rest: Any) -> Generation:
        """A record whose derived numbers are computed from the raw ones, with intervals if ``claimed``.

        Raises:
            MissingExtraError: if intervals are asked for and scipy is not installed.
        """
        raw: dict[str, Any] = {
            "first_ms": tuple(round(sample, 4) for sample in rest.pop("first_ms")),
            "total_ms": tuple(round(sample, 4) for sample in rest.pop("total_ms")),
            "prompt_tokens": tuple(rest.pop("prompt_tokens")),
            "completion_tokens": tuple(rest.pop("completion_tokens")),
        }
        derived = _generation(**raw)
        found: dict[str, Interval | None] = {}
        if claimed:
            times = {"ttft": raw["first_ms"], "tpot": per_token_ms(**raw)}
            found = {
                f"{name}_p{p}_ms": intervals.of_percentile(samples, p)
                for name, samples in times.items()
                for p in (50, 90, 99)
                if derived[f"{name}_p{p}_ms"] is not None
            }
            found["tokens_per_second"] = intervals.of_rate(
                raw["completion_tokens"], [ms / 1e3 for ms in raw["total_ms"]]
            )
            found["prefill_per_second"] = intervals.of_rate(
                raw["prompt_tokens"], [ms / 1e3 for ms in raw["first_ms"]]
            )
            found["throughput"] = _throughput(rest.get("windows", ()))
        return cls(
            **raw,
            n=len(raw["first_ms"]),
            throughput=_per_second(len(raw["first_ms"]), rest["seconds"]),
            intervals=_known(found),
            **derived,
            **rest,
        )

    @model_validator(mode="after")
    def _agrees_with_samples(self) -> Generation:
        raw = self.raw
        if {len(values) for values in raw.values()} != {self.n}:
            raise ValueError("first_ms, total_ms, prompt_tokens and completion_tokens differ in length")
        _agree(self, _generation(**raw))
        return self

    @property
    def raw(self) -> dict[str, Any]:
        """The four measured numbers of each request."""
        return {
            "first_ms": self.first_ms,
            "total_ms": self.total_ms,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    @property
    def tpot_ms(self) -> list[float]:
        """Time per output token, of each request that has one."""
        return per_token_ms(**self.raw)

    @property
    def repeat_ratio(self) -> float | None:
        """Time to the first token of repeated requests over that of varied ones, medians."""
        return self._repeat_ratio(self.first_ms)

    @property
    def answers_from_memory(self) -> bool:
        """Whether repeated prompts are read faster than a server without a cache of prompts may read them."""
        return self._answers_from_memory(self.first_ms)


def per_token_ms(
    first_ms: Sequence[float],
    total_ms: Sequence[float],
    prompt_tokens: Sequence[int],
    completion_tokens: Sequence[int],
) -> list[float]:
    """Time per output token after the first, of each request with more than one."""
    return [
        round((total - first) / (count - 1), 4)
        for first, total, count in zip(first_ms, total_ms, completion_tokens, strict=True)
        if count > 1
    ]


def _latency(samples: tuple[float, ...], sums: tuple[float, ...]) -> dict[str, Any]:
    if not samples or len(samples) != len(sums):
        raise ValueError("as many server times as samples, and at least one")
    client, server = round(median(samples), 4), round(median(sums), 4)
    return {
        "n": len(samples),
        **{f"p{p:g}_ms": stats.percentile(samples, p) for p in PERCENTILES},
        "client_median_ms": client,
        "server_median_ms": server,
        "excess_ms": round(client - server, 4),
        "excess_allowed_ms": round(stats.stage_allowance(server), 4),
    }


def _generation(
    first_ms: tuple[float, ...],
    total_ms: tuple[float, ...],
    prompt_tokens: tuple[int, ...],
    completion_tokens: tuple[int, ...],
) -> dict[str, Any]:
    if not first_ms or sum(first_ms) <= 0 or sum(total_ms) <= 0:
        raise ValueError("at least one generation, and one that took time")
    tpot = per_token_ms(first_ms, total_ms, prompt_tokens, completion_tokens)
    return {
        **{f"ttft_p{p}_ms": stats.percentile(first_ms, p) for p in (50, 90, 99)},
        **{f"tpot_p{p}_ms": stats.percentile(tpot, p) for p in (50, 90, 99)},
        "tokens_per_second": round(1e3 * sum(completion_tokens) / sum(total_ms), 4),
        "prefill_per_second": round(1e3 * sum(prompt_tokens) / sum(first_ms), 4),
    }


def _agree(record: BaseModel, derived: Mapping[str, Any]) -> None:
    for name, value in derived.items():
        if getattr(record, name) != value:
            raise ValueError(f"{name} is {getattr(record, name)}, the samples say {value}")


def _throughput(windows: Sequence[Window]) -> Interval | None:
    seconds = [window.n / window.throughput for window in windows if window.throughput]
    return intervals.of_rate([window.n for window in windows if window.throughput], seconds)


def _per_second(count: int, seconds: float) -> float | None:
    return round(count / seconds, 4) if seconds else None


def _known(found: Mapping[str, Interval | None]) -> dict[str, Interval]:
    return {name: interval for name, interval in found.items() if interval is not None}
