"""The load: one client that sends its next request when the last one is answered (SingleStream).

Requests come in rounds. A round holds every golden request once, in an order drawn from a printed seed; a few
as they are, so that answers can be checked, the others with their words shuffled, so that no cache of answers
could flatter the server. Every round asks for the same work, so windows of whole rounds can be compared.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from mlos.errors import MlosError
from mlos.host.environment import steal_seconds
from mlos.validation import stats
from mlos.validation.asking import ask
from mlos.validation.results import Window

BUDGET_SECONDS = 10.0
"""What the smoke tier allows per model, warm-up included; a request under way is still waited for."""
WARMUP_SECONDS = 5.0
WARMUP_WINDOWS = 10
WINDOW_SECONDS = 0.5
TIMED_SECONDS = 4.0
CHECKED_SHARE = 0.25
MAX_ERRORS = 3
_TIMEOUT = 60.0


@dataclass
class Load:
    """What a load run saw. ``answers`` are pairs of a golden case's number and the result it got."""

    samples_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    warmup: list[Window] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    errors: int = 0
    first_error: str | None = None
    stable: bool = False
    seconds: float = 0.0
    steal_share: float = 0.0


def single_stream(url: str, golden: Sequence[dict[str, Any]], seed: int) -> Load:
    """Warm up until three windows agree, then measure; the results of the warm-up are not kept.

    Args:
        url: the model's inference address.
        golden: the requests of the golden record, as JSON objects; at least one.
        seed: of the order and the variants.
    """
    load, chance = Load(), random.Random(seed)  # noqa: S311  (a load generator, not cryptography)
    limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx2.Client(timeout=_TIMEOUT, limits=limits, trust_env=False) as client:
        began = time.perf_counter()
        end = began + BUDGET_SECONDS
        while (
            not load.stable
            and not load.errors
            and len(load.warmup) < WARMUP_WINDOWS
            and time.perf_counter() - began < WARMUP_SECONDS
        ):
            load.warmup.append(_window(client, url, golden, chance, load, end))
            load.stable = stats.steady([stats.WindowSummary(w.throughput, w.p90_ms) for w in load.warmup])
        for kept in (load.samples_ms, load.stages_ms, load.answers):
            kept.clear()
        stolen, began = steal_seconds(), time.perf_counter()
        while load.errors <= MAX_ERRORS and (load.seconds < TIMED_SECONDS) and time.perf_counter() < end:
            _round(client, url, golden, chance, load, end)
            load.seconds = time.perf_counter() - began
        if load.seconds:
            load.steal_share = (steal_seconds() - stolen) / (load.seconds * (os.cpu_count() or 1))
    return load


def _window(
    client: httpx2.Client,
    url: str,
    golden: Sequence[dict[str, Any]],
    chance: random.Random,
    load: Load,
    end: float,
) -> Window:
    first, began = len(load.samples_ms), time.perf_counter()
    while (elapsed := time.perf_counter() - began) < WINDOW_SECONDS and not load.errors:
        _round(client, url, golden, chance, load, end)
    times = load.samples_ms[first:]
    p90 = stats.quantile(times, 90) if times else 0.0
    return Window(n=len(times), throughput=round(len(times) / elapsed, 3), p90_ms=round(p90, 4))


def _round(
    client: httpx2.Client,
    url: str,
    golden: Sequence[dict[str, Any]],
    chance: random.Random,
    load: Load,
    end: float,
) -> None:
    """Every golden request once; cut short where the time is up, but for the first."""
    order = chance.sample(range(len(golden)), len(golden))
    checked = set(chance.sample(order, max(1, round(CHECKED_SHARE * len(golden)))))
    # A checked request goes first, so that even a model with time for one answer has one checked.
    order.sort(key=lambda number: number not in checked and not load.answers)
    for place, number in enumerate(order):
        if place and time.perf_counter() >= end:
            return
        body = golden[number] if number in checked else varied(golden[number], chance)
        try:
            asked = ask(client, url, body)
        except MlosError as error:
            load.errors += 1
            load.first_error = load.first_error or error.message
            if load.errors > MAX_ERRORS:
                return
            continue
        load.samples_ms.append(asked.taken_ms)
        load.stages_ms.append(asked.stages_ms)
        if number in checked:
            load.answers.append((number, asked.answer.result))


def varied(request: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same words in another order: as long to compute, and another answer."""

    def shuffled(text: str) -> str:
        words = text.split()
        return " ".join(chance.sample(words, len(words)))

    changed = dict(request)
    if "text" in request:
        changed["text"] = shuffled(request["text"])
    if "texts" in request:
        changed["texts"] = [shuffled(text) for text in request["texts"]]
    return changed
