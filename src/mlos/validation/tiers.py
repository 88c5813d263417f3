"""How long each tier measures, and what may then be said of its numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Tier: TypeAlias = Literal["smoke", "release", "record"]

CLAIMS: dict[Tier, str] = {
    "smoke": "smoke: no claim",
    "release": "numbers with intervals",
    "record": "comparable across releases",
}
"""What may be said of a tier's numbers; shown beside them."""


@dataclass(frozen=True)
class Length:
    """How long one scenario of one model is measured; times are in seconds.

    The warm-up ends when its windows agree, after ``warmup_windows`` of them or after ``warmup_seconds``; then
    the clock runs for at least ``timed_seconds`` and ``samples`` answers, but never past ``budget_seconds``
    from the start of the warm-up. A request under way is still waited for, and one is always asked.
    """

    timed_seconds: float
    samples: int
    window_seconds: float
    warmup_seconds: float = math.inf
    warmup_windows: int = 10
    budget_seconds: float = math.inf


LENGTHS: dict[Tier, Length] = {
    "smoke": Length(timed_seconds=4, samples=0, window_seconds=0.5, warmup_seconds=5, budget_seconds=10),
    "release": Length(timed_seconds=60, samples=64, window_seconds=1),
    "record": Length(timed_seconds=600, samples=64, window_seconds=1),
}


def claims_numbers(tier: Tier) -> bool:
    """Whether the tier's numbers are claims, and so need intervals."""
    return tier != "smoke"
