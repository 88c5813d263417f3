"""A result row while it is being filled: what is known so far is never lost."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from mlos.console import Console, ProgressMode
from mlos.errors import MlosError
from mlos.settings import Settings
from mlos.validation import results
from mlos.validation.plan import PlannedModel
from mlos.validation.tiers import Tier

_T = TypeVar("_T")


@dataclass(frozen=True)
class Terms:
    """How a run validates each of its models; ``progress`` is how the programs it starts show theirs.

    What was installed since ``began`` is removed after its row; nothing is where that is None.
    """

    settings: Settings
    tier: Tier
    seed: int
    console: Console
    progress: ProgressMode
    began: datetime | None = None


class GateFailed(Exception):  # noqa: N818  (no error: it carries a failed gate out of the row's steps)
    """A gate failed in a way that ends the row."""


class OpenRow:
    """One model's facts and gates, in the order they come."""

    def __init__(self, planned: PlannedModel, terms: Terms) -> None:
        self._terms = terms
        self.facts: dict[str, Any] = {
            "name": planned.name,
            "family": planned.entry.family if planned.entry else None,
            "requested": planned.reference,
            "weights_reason": planned.weights_reason,
        }
        self.pin(planned.reference)
        self.gates: list[results.Gate] = []

    def pin(self, reference: str) -> None:
        """Name the commands that show the same again, at this reference."""
        terms = ["--tier", self._terms.tier, "--seed", str(self._terms.seed)]
        self.facts["commands"] = {
            "all": shlex.join(["mlos", "validate", "--model", reference, *terms]),
            "install": shlex.join(["axon", "install", reference]),
            "serve": shlex.join(["mlos_core", "--model", reference]),
        }

    def passed(self, name: Any, detail: str) -> None:
        """Note a gate that was passed."""
        self.gates.append(results.Gate(name=name, status="passed", detail=detail))

    def failed(self, name: Any, detail: str) -> None:
        """Note a gate that was not."""
        self.gates.append(results.Gate(name=name, status="failed", detail=detail))

    def not_run(self, name: Any, detail: str) -> None:
        """Note a gate that was not reached, and why."""
        self.gates.append(results.Gate(name=name, status="not run", detail=detail))

    def attempt(self, gate: Any, step: Callable[[], _T]) -> _T:
        """Take a step; an error of ours fails the gate and ends the row.

        Raises:
            GateFailed: if the step failed.
        """
        try:
            return step()
        except MlosError as error:
            self.failed(gate, error.message)
            raise GateFailed from error

    @property
    def sound(self) -> bool:
        """Whether no gate has failed yet."""
        return not any(gate.status == "failed" for gate in self.gates)

    def finished(self) -> results.Row:
        """The row: failed if a gate failed; passed only if every gate was gone through and passed."""
        undone = [gate for gate in self.gates if gate.status != "passed"]
        first = next((gate for gate in undone if gate.status == "failed"), next(iter(undone), None))
        status: results.Status = first.status if first else "passed"
        reason = f"{first.name}: {first.detail}" if first else None
        return results.Row(**self.facts, status=status, reason=reason, gates=tuple(self.gates))
