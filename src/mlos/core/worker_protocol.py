"""The words between a supervisor and its workers: orders at the start, a report when loaded, answers after."""

from __future__ import annotations

from typing import Any

import msgspec

from mlos.tasks import Limits


class Orders(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the supervisor tells a worker at its start. ``started`` is on the monotonic clock.

    ``engine``, ``precision`` and ``threads`` say how the package is computed, ``compiled`` where the engine
    finds what it compiled for this host. Up to ``most`` requests are computed together, texts of up to
    ``longest`` tokens.
    """

    parent: int
    channel: int
    store: str
    digest: str
    threads: int
    limits: Limits
    started: float
    engine: str
    precision: str
    compiled: str | None = None
    most: int = 1
    longest: int | None = None


class Report(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a worker says of itself: it is ready, or it cannot be (``error``).

    ``load_seconds`` holds each stage of loading: start, verify, confine, open, warm_up. ``sandbox`` names the
    layers that hold and ``missing`` why others do not; ``note`` says what went otherwise than planned.
    """

    engine: str = ""
    engine_version: str = ""
    precision: str = ""
    load_seconds: dict[str, float] = {}
    sandbox: tuple[str, ...] = ()
    missing: dict[str, str] = {}
    heavy: tuple[str, ...] = ()
    note: str | None = None
    error: dict[str, Any] | None = None


class Answer(msgspec.Struct, frozen=True):
    """The body of a completed inference. ``result`` is JSON; times are in milliseconds.

    ``tokens`` counts those of a language model, by what they were: ``prompt``, ``completion``; ``batch`` says
    how many requests were computed together.
    """

    task: str
    result: bytes
    timings_ms: dict[str, float]
    tokens: dict[str, int] = {}
    batch: int = 1
