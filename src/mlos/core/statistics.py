"""What the Open Inference Protocol's statistics extension tells of a model: how often, and how long in all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PARTS = {
    "queue": ("queue",),
    "compute_input": ("copy_in", "preprocess"),
    "compute_infer": ("compute",),
    "compute_output": ("postprocess", "copy_out"),
}
"""Our stages that each of the protocol's is made of."""


@dataclass
class Duration:
    """So many times, so many nanoseconds in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """One time more."""
        self.count += 1
        self.ns += max(0, int(1e9 * seconds))

    def as_dict(self) -> dict[str, int]:
        """In the protocol's words."""
        return {"count": self.count, "ns": self.ns}


@dataclass
class Statistics:
    """Those of one model since the server began to serve it."""

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    parts: dict[str, Duration] = field(default_factory=lambda: {name: Duration() for name in PARTS})
    executions: float = 0.0
    """Runs of the engine: a request that was computed with others counts as its part of one."""
    last_ms: int = 0
    """When it last answered, in milliseconds since 1970."""

    def succeeded(self, seconds: float, timings_ms: Mapping[str, float], batch: int = 1) -> None:
        """Count an answered request, which took so long, by stages, one of ``batch`` computed together."""
        self.success.add(seconds)
        self.executions += 1 / batch
        for name, stages in PARTS.items():
            self.parts[name].add(sum(timings_ms[stage] for stage in stages) / 1e3)
        self.last_ms = int(1e3 * time.time())

    def failed(self, seconds: float) -> None:
        """Count a request that was answered with an error, or not waited for."""
        self.fail.add(seconds)

    def as_dict(self) -> dict[str, Any]:
        """In the protocol's words; nothing is cached."""
        return {
            "last_inference": self.last_ms,
            "inference_count": self.success.count,
            "execution_count": round(self.executions),
            "inference_stats": {
                "success": self.success.as_dict(),
                "fail": self.fail.as_dict(),
                **{name: duration.as_dict() for name, duration in self.parts.items()},
                "cache_hit": Duration().as_dict(),
                "cache_miss": Duration().as_dict(),
            },
            "batch_stats": [],
        }
