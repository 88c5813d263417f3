"""The words between a server and its workers: orders at the start, a report when loaded, asks and answers."""

from __future__ import annotations

from typing import Any

import msgspec

from mlos.model import InferenceRequest
from mlos.tasks import Limits


class Orders(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What the supervisor tells a worker at its start. ``started`` is on the monotonic clock.

    ``engine``, ``precision`` and ``threads`` say how the package is computed, ``compiled`` where the engine
    finds what it compiled for this host. With the orders comes one end of a channel for each stream, which
    computes what it claims there beside the others. Up to ``most`` requests are computed together, texts of up
    to ``longest`` tokens; up to ``sequences`` generations are continued together. A ``wary`` worker opens only
    what is verified, and nothing that was compiled.
    """

    parent: int
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
    sequences: int = 1
    wary: bool = False


class Report(msgspec.Struct, omit_defaults=True, frozen=True):
    """What a worker says of itself: it is ready, or it cannot be (``error``).

    ``load_seconds`` holds each stage of loading: start, confine, open, warm_up, and verify, which is how much
    longer that took than the others. ``sandbox`` names the layers that hold and ``missing`` why others do not;
    ``note`` says what went otherwise than planned.
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


class Tensor(msgspec.Struct, frozen=True):
    """A named tensor under way, with the Open Inference Protocol's name of its element type.

    ``data`` holds its elements in row-major order: an array of one axis, or the text of a JSON list, which is
    read and written by the worker alone. Of an array, elements of BF16 are the UINT16 of the same bits, and
    those of BYTES a UINT8 array of the protocol's own form: each with its length before it.
    """

    name: str
    datatype: str
    shape: list[int]
    data: Any


class Wanted(msgspec.Struct, frozen=True):
    """How an output is to be answered: as an array if ``binary``, else as JSON.

    With ``classes``, not the output itself but that many of its largest values with their places and labels.
    """

    name: str
    binary: bool = False
    classes: int = 0


class Ask(msgspec.Struct, omit_defaults=True, frozen=True):
    """The body of a request. With ``tensors``, which are its inputs, it is answered with tensors.

    ``wanted`` says in which form; an output that it does not name is an array if ``binary``.
    """

    request: InferenceRequest
    tensors: list[Tensor] | None = None
    wanted: list[Wanted] = []
    binary: bool = False


class Answer(msgspec.Struct, frozen=True):
    """The body of a completed inference. ``result`` is JSON; times are in milliseconds.

    ``tokens`` counts those read and written, by what they were: ``prompt``, ``completion``. What was asked with
    tensors has ``tensors`` in place of a result. ``batch`` says how many requests were computed together: for a
    generation, on average; ``steps`` how many of its tokens came from steps of how many sequences, and
    ``finish_reason`` why a text that was written ended.
    """

    task: str
    result: bytes
    timings_ms: dict[str, float]
    tokens: dict[str, int] = {}
    tensors: list[Tensor] | None = None
    batch: int = 1
    finish_reason: str | None = None
    steps: dict[int, int] = {}
