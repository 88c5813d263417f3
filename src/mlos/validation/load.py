"""The load: one client that sends its next request when the last one is answered.

Two scenarios: SingleStream takes whole answers, Generation takes them as they are made. Requests come in
rounds. A round holds every golden request once, in an order drawn from a printed seed; a few as they are, so
that answers can be checked, the others varied, so that no cache of answers could flatter the server. Every
round asks for the same work, so windows of whole rounds can be compared.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import httpx2

from mlos.errors import MlosError
from mlos.host.environment import steal_seconds
from mlos.validation import stats
from mlos.validation.asking import Asked, ask, ask_streamed
from mlos.validation.tiers import Length
from mlos.validation.timing import Window
from mlos.validation.variation import Variation

CHECKED_SHARE = 0.25
MAX_ERRORS = 3
TOKENS = 32
"""How many tokens a varied request asks for where its golden request does not say."""
_TIMEOUT = 300.0

Ask: TypeAlias = Callable[[httpx2.Client, str, dict[str, Any]], Asked]


@dataclass(frozen=True)
class Query:
    """A golden request as a JSON object, and whether its answer is generated token by token."""

    request: dict[str, Any]
    generates: bool = False


@dataclass
class Sample:
    """One answered request of the timed stretch: which golden request, and whether just as it stands there."""

    number: int
    repeated: bool
    taken_ms: float
    first_ms: float | None
    stages_ms: dict[str, float]
    usage: dict[str, int]


@dataclass
class Load:
    """What a load run saw.

    ``answers`` are pairs of a golden case's number and a result it got, equal ones in a row kept once;
    ``checked`` counts them all. ``torn`` says where the parts of a stream did not add up to its answer.
    """

    samples: list[Sample] = field(default_factory=list)
    warmup: list[Window] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    checked: int = 0
    torn: str | None = None
    errors: int = 0
    first_error: str | None = None
    stable: bool = False
    seconds: float = 0.0
    steal_share: float = 0.0


def single_stream(
    url: str,
    golden: Sequence[Query],
    seed: int,
    length: Length,
    advance: Callable[[float], None] = lambda seconds: None,
) -> Load:
    """Warm up until three windows agree, then measure; the results of the warm-up are not kept.

    Args:
        url: the model's inference address.
        golden: the requests of the golden record; at least one.
        seed: of the order and the variants.
        length: how long.
        advance: told, now and then, how many more whole seconds of the timed stretch are done; where samples
            are what is waited for, their share of it.
    """
    return _Client(url, golden, seed, length, ask).run(advance)


def generation(
    url: str,
    golden: Sequence[Query],
    seed: int,
    length: Length,
    advance: Callable[[float], None] = lambda seconds: None,
) -> Load:
    """The same with streamed answers, of which the first part is timed too."""
    return _Client(url, golden, seed, length, ask_streamed).run(advance)


class _Client:
    def __init__(self, url: str, golden: Sequence[Query], seed: int, length: Length, ask: Ask) -> None:
        self._url, self._golden, self._length, self._ask = url, golden, length, ask
        self._chance = random.Random(seed)  # noqa: S311  (a load generator, not cryptography)
        self._variation = Variation([query.request for query in golden])
        self._load = Load()
        self._end = 0.0

    def run(self, advance: Callable[[float], None]) -> Load:
        load, length = self._load, self._length
        limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
        with httpx2.Client(timeout=_TIMEOUT, limits=limits, trust_env=False) as client:
            began = time.perf_counter()
            self._end = began + length.warmup_seconds
            while (
                not load.stable
                and not load.errors
                and len(load.warmup) < length.warmup_windows
                and time.perf_counter() < self._end
            ):
                load.warmup.append(self._window(client))
                load.stable = stats.steady([stats.WindowSummary(w.throughput, w.p90_ms) for w in load.warmup])
            for kept in (load.samples, load.answers):
                kept.clear()
            load.checked = 0
            self._end = began + length.budget_seconds
            told, stolen, began = 0, steal_seconds(), time.perf_counter()
            while (
                load.errors <= MAX_ERRORS
                and (load.seconds < length.timed_seconds or len(load.samples) < length.samples)
                and (time.perf_counter() < self._end or not load.windows)
            ):
                load.windows.append(self._window(client))
                load.seconds = time.perf_counter() - began
                done = int(length.timed_seconds * self._share_done())
                advance(done - told)
                told = done
            if load.seconds:
                load.steal_share = (steal_seconds() - stolen) / (load.seconds * (os.cpu_count() or 1))
        return load

    def _share_done(self) -> float:
        """How much of the timed stretch is done, from 0 to 1: of its time or its samples, whichever is less."""
        load, length = self._load, self._length
        by_time = load.seconds / length.timed_seconds if length.timed_seconds else 1.0
        by_samples = len(load.samples) / length.samples if length.samples else 1.0
        return min(by_time, by_samples, 1.0)

    def _window(self, client: httpx2.Client) -> Window:
        """Whole rounds, until the window is as long as it should be."""
        samples = self._load.samples
        first, began, errors = len(samples), time.perf_counter(), self._load.errors
        while True:
            self._round(client)
            now = time.perf_counter()
            elapsed = now - began
            if elapsed >= self._length.window_seconds or now >= self._end or self._load.errors > errors:
                break
        times = [sample.taken_ms for sample in samples[first:]]
        p90 = stats.quantile(times, 90) if times else 0.0
        return Window(n=len(times), throughput=round(len(times) / elapsed, 6), p90_ms=round(p90, 4))

    def _round(self, client: httpx2.Client) -> None:
        """Every golden request once; cut short where the time is up, but for the first."""
        load, chance, golden = self._load, self._chance, self._golden
        order = chance.sample(range(len(golden)), len(golden))
        checked = set(chance.sample(order, max(1, round(CHECKED_SHARE * len(golden)))))
        # A checked request goes first, so that even a model with time for one answer has one checked.
        order.sort(key=lambda number: number not in checked and not load.answers)
        for place, number in enumerate(order):
            if place and time.perf_counter() >= self._end:
                return
            repeated = number in checked
            try:
                asked = self._ask(client, self._url, self._body(golden[number], repeated))
            except MlosError as error:
                load.errors += 1
                load.first_error = load.first_error or error.message
                if load.errors > MAX_ERRORS:
                    return
                continue
            self._keep(number, repeated, asked)

    def _body(self, query: Query, repeated: bool) -> dict[str, Any]:
        """The request as it stands, or a variant of it with an end to what it generates."""
        if repeated:
            return query.request
        body = self._variation.of(query.request, self._chance)
        if not query.generates:
            return body
        return body | {"parameters": {"max_tokens": TOKENS} | body.get("parameters", {})}

    def _keep(self, number: int, repeated: bool, asked: Asked) -> None:
        load, result = self._load, asked.answer.result
        load.samples.append(
            Sample(number, repeated, asked.taken_ms, asked.first_ms, asked.stages_ms, _usage(result))
        )
        if asked.streamed is not None:
            text = result.get("text") if isinstance(result, dict) else None
            if asked.streamed != text:
                load.torn = load.torn or f"parts {asked.streamed!r:.200}, answer {text!r:.200}"
        if repeated:
            load.checked += 1
            last = next((answer for which, answer in reversed(load.answers) if which == number), None)
            # A sound server answers the same each time: thousands of equal embeddings need no memory.
            if last is None or last != result:
                load.answers.append((number, result))


def _usage(result: Any) -> dict[str, int]:
    """How many tokens a generation took and gave; nothing where the answer does not say it in whole numbers."""
    usage = result.get("usage") if isinstance(result, dict) else None
    if not isinstance(usage, dict):
        return {}
    return {name: count for name, count in usage.items() if isinstance(count, int)}
