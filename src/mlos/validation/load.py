"""The load: one client that sends its next request when the last one is answered (SingleStream).

Requests are the golden ones and variants of them with their words in another order, drawn from a printed
seed, so that no cache of answers could flatter the server. Answers to golden requests are kept for checking;
the comparison happens after the clock has stopped.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from mlos.host.environment import steal_seconds
from mlos.validation import stats
from mlos.validation.results import Window

WARMUP_WINDOWS = 10
WINDOW_SECONDS = 0.5
TIMED_SECONDS = 4.0
"""With the longest warm-up 9 s: a smoke load stays under the 10 s that its tier allows per model."""
GOLDEN_SHARE = 0.25
MINIMUM_REQUESTS = 3


@dataclass
class Load:
    """What a load run saw. ``answers`` are pairs of a golden case's number and the answer to it."""

    samples_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)
    stages_ms: list[dict[str, float]] = field(default_factory=list)
    warmup: list[Window] = field(default_factory=list)
    answers: list[tuple[int, Any]] = field(default_factory=list)
    errors: int = 0
    first_error: str | None = None
    stable: bool = False
    seconds: float = 0.0
    steal_share: float = 0.0


def single_stream(url: str, golden: Sequence[dict[str, Any]], seed: int) -> Load:
    """Warm up until three windows agree, then measure. ``url`` is the model's inference address.

    Args:
        url: where to post.
        golden: the requests of the golden record, as JSON objects.
        seed: of the order and the variants.
    """
    load, chance = Load(), random.Random(seed)  # noqa: S311  (a load generator, not cryptography)
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    with httpx.Client(timeout=60.0, limits=limits) as client:

        def one() -> float:
            return _request(client, url, golden, chance, load)

        while len(load.warmup) < WARMUP_WINDOWS and not load.stable:
            load.warmup.append(_window(one))
            summaries = [stats.WindowSummary(window.throughput, window.p90_ms) for window in load.warmup]
            load.stable = stats.steady(summaries)
        for kept in (load.samples_ms, load.server_ms, load.stages_ms, load.answers):
            kept.clear()
        stolen, began = steal_seconds(), time.perf_counter()
        while (elapsed := time.perf_counter() - began) < TIMED_SECONDS or len(
            load.samples_ms
        ) < MINIMUM_REQUESTS:
            one()
            if load.errors > MINIMUM_REQUESTS:
                break
        load.seconds = elapsed
        load.steal_share = (steal_seconds() - stolen) / (elapsed * (os.cpu_count() or 1))
    return load


def _window(one: Callable[[], float]) -> Window:
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < WINDOW_SECONDS or len(times) < MINIMUM_REQUESTS:
        times.append(one())
    throughput = len(times) / (time.perf_counter() - began)
    return Window(n=len(times), throughput=round(throughput, 3), p90_ms=round(stats.quantile(times, 90), 4))


def _request(
    client: httpx.Client, url: str, golden: Sequence[dict[str, Any]], chance: random.Random, load: Load
) -> float:
    """Send one request; its end-to-end time in ms."""
    number = chance.randrange(len(golden))
    varied = chance.random() >= GOLDEN_SHARE
    body = _varied(golden[number], chance) if varied else golden[number]
    began = time.perf_counter()
    try:
        response = client.post(url, json=body)
        taken = (time.perf_counter() - began) * 1e3
        response.raise_for_status()
        answer = response.json()
    except (httpx.HTTPError, ValueError) as error:
        load.errors += 1
        load.first_error = load.first_error or f"{type(error).__name__}: {error}"
        return (time.perf_counter() - began) * 1e3
    load.samples_ms.append(taken)
    load.server_ms.append(sum(answer["timings_ms"].values()))
    load.stages_ms.append(answer["timings_ms"])
    if not varied:
        load.answers.append((number, answer["result"]))
    return taken


def _varied(request: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """The same words in another order: as long to compute, and another answer."""

    def shuffled(text: str) -> str:
        words = text.split()
        chance.shuffle(words)
        return " ".join(words)

    varied = dict(request)
    if "text" in request:
        varied["text"] = shuffled(request["text"])
    if "texts" in request:
        varied["texts"] = [shuffled(text) for text in request["texts"]]
    return varied
