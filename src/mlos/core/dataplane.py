"""The data plane: the rules of a request, written once for every protocol.

Find the model, set the deadline, keep the queue bounded, hand over, wait, count. It knows no HTTP; a shell
turns its own request into an :class:`InferenceRequest` and the :class:`Inference` into its own answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mlos.accel import Outcome, Ticket
from mlos.core.metrics import MODE, Metrics
from mlos.core.replica import Replica
from mlos.core.supervisor import Supervisor
from mlos.core.worker_protocol import Answer, Ask, Tensor
from mlos.errors import InvalidInputError, MlosError, UnavailableError, WorkerError
from mlos.model import InferenceRequest

CLIENT_LEFT = 499
"""The status under which a request is counted whose client did not wait."""


@dataclass(frozen=True)
class Urgency:
    """How long a client waits, in seconds from its request's arrival, and the class that the request waits in.

    It never waits longer than the server allows; a lower ``priority`` goes first.
    """

    timeout: float = math.inf
    priority: int = 0


USUAL = Urgency()
_KINDS = frozenset({"prompt", "completion"})
_MOST_TOKENS = 1 << 20
"""More than any request has, and few enough to be counted one by one."""


@dataclass(frozen=True)
class Inference:
    """An answered request. ``result`` is JSON; the stages of ``timings_ms`` do not overlap."""

    model: str
    digest: str
    task: str
    result: msgspec.Raw
    engine: str
    precision: str
    mode: str
    timings_ms: dict[str, float]
    tokens: dict[str, int] = field(default_factory=dict)
    """Those read and written, by what they were: ``prompt``, ``completion``."""
    tensors: list[Tensor] | None = None
    """The answer to tensors, in place of ``result``."""


class Part(msgspec.Struct, frozen=True):
    """A part of an answer, as the model's task emits it."""

    text: str


@dataclass
class _Counted:
    """A request under way, and the model that it is counted for, once it is known to be one."""

    replica: Replica | None = None


class DataPlane:
    """What all protocol shells of a server call."""

    def __init__(
        self, supervisor: Supervisor, metrics: Metrics, *, request_timeout: float, max_queue: int
    ) -> None:
        self.supervisor = supervisor
        self.metrics = metrics
        self.draining = False
        self.in_flight = 0
        self.timeout, self._max_queue = request_timeout, max_queue

    async def infer(
        self,
        model: str,
        request: InferenceRequest | Ask,
        arrived: float,
        urgency: Urgency = USUAL,
    ) -> Inference:
        """Answer one request, which ``arrived`` at that time of the monotonic clock.

        Cancelling this coroutine cancels the request.

        Raises:
            NotFoundError: there is no such model.
            UnavailableError: draining, full, or restarting again and again; says when to come back.
            DeadlineError: the deadline passed, in the queue or in the worker.
            InvalidInputError: a parameter is a number of more than 64 bits.
            MlosError: what the model's task or engine raised.
        """
        with self._counting() as counted:
            replica = counted.replica = self._admitted(model)
            ticket = self._submit(replica, request, arrived, urgency)
            try:
                outcome = await ticket.outcome
            except asyncio.CancelledError:
                replica.channel.cancel(ticket)
                raise
            return self._inference(replica, outcome)

    async def stream(
        self,
        model: str,
        request: InferenceRequest | Ask,
        arrived: float,
        urgency: Urgency = USUAL,
    ) -> AsyncGenerator[Part | Inference, None]:
        """Answer one request in parts, and at last as a whole; see :meth:`infer`.

        Closing or cancelling this generator cancels the request.

        Raises:
            MlosError: as :meth:`infer` does, before the first part or between two.
        """
        with self._counting() as counted:
            replica = counted.replica = self._admitted(model)
            ticket = self._submit(replica, request, arrived, urgency)
            try:
                first = True
                async for part in ticket.parts():
                    if first:
                        self.metrics.began(replica, time.monotonic() - arrived)
                        first = False
                    yield self._part(replica, part)
                outcome = await ticket.outcome
            except BaseException:  # whatever it is: nobody waits any more
                replica.channel.cancel(ticket)
                raise
            inference = self._inference(replica, outcome)
        yield inference  # counted already: who takes no more after it has not left

    @contextmanager
    def _counting(self) -> Iterator[_Counted]:
        """Count a request while it is under way, and how it ended."""
        counted, code, begun = _Counted(), MlosError.http_status, time.monotonic()
        self.in_flight += 1
        self.metrics.in_flight.inc()
        try:
            yield counted
            code = 200
        except (asyncio.CancelledError, GeneratorExit):
            code = CLIENT_LEFT
            raise
        except MlosError as error:
            code = error.http_status
            raise
        finally:
            self.in_flight -= 1
            self.metrics.in_flight.dec()
            self.metrics.counted(counted.replica, code)
            if counted.replica is not None and code != 200:
                counted.replica.statistics.failed(time.monotonic() - begun)

    def unready(self) -> str | None:
        """Why requests should go elsewhere; nothing if they should come."""
        return "draining: the server is about to end" if self.draining else self.supervisor.unready()

    def _admitted(self, model: str) -> Replica:
        if self.draining:
            raise UnavailableError("the server is draining and about to end", retry_after=1.0)
        replica = self.supervisor.find(model)
        replica.admit()
        waiting = replica.channel.waiting
        if waiting >= self._max_queue:
            wait = waiting * replica.service_seconds / max(1, replica.runs_at_once)
            raise UnavailableError(
                f"model {replica.package.name} is full: {waiting} requests wait, for about {wait:.2g} s",
                retry_after=max(1.0, math.ceil(wait)),
                hint="come back after Retry-After, or raise the server's --max-queue",
            )
        return replica

    def _submit(
        self,
        replica: Replica,
        request: InferenceRequest | Ask,
        arrived: float,
        urgency: Urgency,
    ) -> Ticket:
        ask = request if isinstance(request, Ask) else Ask(request)
        _check_width(ask.request.parameters)
        deadline = arrived + min(urgency.timeout, self.timeout)
        return replica.channel.submit(ask, deadline=deadline, priority=urgency.priority)

    def _part(self, replica: Replica, part: Any) -> Part:
        try:
            return msgspec.convert(part, Part)
        except msgspec.ValidationError as error:
            raise WorkerError(f"the worker of {replica.package.name} emitted nonsense: {error}") from error

    def _inference(self, replica: Replica, outcome: Outcome) -> Inference:
        """What a worker answered, and what it took, counted."""
        try:
            answer = msgspec.convert(outcome.body, Answer)
        except msgspec.ValidationError as error:
            raise WorkerError(f"the worker of {replica.package.name} answered nonsense: {error}") from error
        if b"\n" in answer.result:  # compact JSON has none, and in an event it would begin a line of its own
            raise WorkerError(f"the worker of {replica.package.name} answered nonsense: a line break")
        spent = answer.timings_ms
        timings = {
            "queue": 1e3 * (outcome.sent - outcome.submitted) + spent.get("wait", 0.0),
            "preprocess": spent.get("preprocess", 0.0),
            "copy_in": spent.get("copy_in", 0.0),
            "compute": spent.get("compute", 0.0),
            # All that the worker had it for and does not name: packing the answer, and the way back.
            "copy_out": max(0.0, 1e3 * (outcome.received - outcome.sent) - sum(spent.values())),
            "postprocess": spent.get("postprocess", 0.0),
        }
        if answer.batch < 1:
            raise WorkerError(f"the worker of {replica.package.name} answered nonsense: a batch of none")
        counts = (*answer.tokens.values(), *answer.steps.values())
        if not set(answer.tokens) <= _KINDS or any(not 0 <= count <= _MOST_TOKENS for count in counts):
            raise WorkerError(f"the worker of {replica.package.name} answered nonsense: {counts!r:.100} tokens")
        replica.served((outcome.finished - outcome.sent) / answer.batch)
        seconds = outcome.received - outcome.submitted
        self.metrics.answered(replica, seconds, timings, answer)
        replica.statistics.succeeded(seconds, timings, answer.batch)
        package, report, served = replica.package, replica.report, replica.served_as
        return Inference(
            model=package.name,
            digest=served.package.digest if served is not None else package.digest,
            task=answer.task,
            result=msgspec.Raw(answer.result),
            engine=report.engine if report is not None else "",
            precision=report.precision if report is not None else "",
            mode=MODE,
            timings_ms={stage: round(milliseconds, 4) for stage, milliseconds in timings.items()},
            tokens=answer.tokens,
            tensors=answer.tensors,
        )


def _check_width(parameters: Mapping[str, Any]) -> None:
    """Refuse a number that no message to a worker can carry, here where its name is known."""
    for name, value in parameters.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise InvalidInputError(
                f"parameter {name!r}: a whole number of {value.bit_length()} bits",
                field=f"parameters.{name}",
                expected="a whole number of at most 64 bits",
                got=f"{value!r:.100}",
            )
