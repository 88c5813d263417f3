"""Which models a run validates, and with whose weights: the catalogue and the flags, nothing measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal, TypeAlias

import httpx2
from huggingface_hub import constants

from mlos.catalogue import Catalogue, Entry
from mlos.errors import NotFoundError, UsageError
from mlos.model import Reference, Weights

WeightsChoice: TypeAlias = Literal["auto", "hub", "seeded", "trained"]

SETS = {
    "default": "every model of the catalogue",
    "all": "every model of the catalogue",
    "small": "the catalogue with the small variants where there are such",
}
_REACH_SECONDS = 2.0


@dataclass(frozen=True)
class PlannedModel:
    """One model of a run. ``entry`` is absent for a reference outside the catalogue."""

    name: str
    reference: str
    task: str | None
    weights_reason: str
    entry: Entry | None

    def as_dict(self) -> dict[str, str | None]:
        """The row as ``--dry-run --output json`` prints it."""
        return {
            "name": self.name,
            "reference": self.reference,
            "task": self.task,
            "weights": self.weights_reason,
        }


def plan(
    catalogue: Catalogue,
    *,
    models: Sequence[str] = (),
    references: Sequence[str] = (),
    set_name: str = "default",
    weights: WeightsChoice = "auto",
) -> tuple[PlannedModel, ...]:
    """The models of a run, in order: those named, else those of the set.

    Args:
        catalogue: the models we know.
        models: short names of the catalogue.
        references: full references, taken as they are.
        set_name: one of :data:`SETS`, where neither names nor references are given.
        weights: whose weights; ``auto`` takes trained ones that an installed Python package carries, else the
            hub's where it answers, else seeded ones.

    Raises:
        NotFoundError: if the catalogue has no such model, or the model no such weights.
        UsageError: if there is no such set.
    """
    planned = [_by_name(catalogue, name, weights, tiny=False) for name in models]
    planned += [_by_reference(catalogue, text) for text in references]
    if planned:
        return tuple(planned)
    if set_name not in SETS:
        raise UsageError(
            f"there is no set of models called {set_name!r}",
            field="set",
            expected=", ".join(SETS),
            got=repr(set_name),
        )
    return tuple(_by_name(catalogue, name, weights, tiny=set_name == "small") for name in catalogue.entries)


def _by_reference(catalogue: Catalogue, text: str) -> PlannedModel:
    resolved = catalogue.resolve(text)
    entry = resolved.entry
    return PlannedModel(
        name=entry.name if entry else resolved.reference.name,
        reference=str(resolved.reference),
        task=entry.tasks[0] if entry else None,
        weights_reason="the reference was given",
        entry=entry,
    )


def _by_name(catalogue: Catalogue, name: str, weights: WeightsChoice, *, tiny: bool) -> PlannedModel:
    entry = catalogue.entries.get(name)
    if entry is None:
        raise NotFoundError(
            f"the catalogue has no model named {name!r}",
            field="models",
            expected=", ".join(catalogue.entries),
            got=repr(name),
            hint="give a model outside the catalogue as --model source/namespace/name",
        )
    if tiny and entry.tiny_reference:
        return PlannedModel(
            name, entry.tiny_reference, entry.tasks[0], "seeded: the small variant for tests", entry
        )
    reference, reason = _choose(entry, weights)
    return PlannedModel(name, reference, entry.tasks[0], reason, entry)


def _choose(entry: Entry, weights: WeightsChoice) -> tuple[str, str]:
    given: dict[Weights, str] = entry.references.all()
    if weights != "auto":
        if weights not in given:
            raise NotFoundError(
                f"{entry.name} has no {weights} weights",
                field="weights",
                expected=", ".join(given),
                got=weights,
            )
        return given[weights], f"{weights}: asked for"
    if "trained" in given and _carried(given["trained"]):
        return given["trained"], "trained: an installed Python package carries them"
    if "hub" in given:
        silent = _hub_silence()
        if silent is None or "seeded" not in given:
            return given["hub"], "hub: it answers" if silent is None else f"hub, although {silent}: no other"
        return given["seeded"], f"seeded: {silent}"
    kind, reference = next(iter(given.items()))
    return reference, f"{kind}: the only ones"


def _carried(reference: str) -> bool:
    try:
        distribution(Reference.parse(reference).name)
    except PackageNotFoundError:
        return False
    return True


@cache
def _hub_silence() -> str | None:
    """Why the hub cannot be asked; None where it answers."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    endpoint = os.environ.get("HF_ENDPOINT", constants.ENDPOINT)
    try:
        httpx2.head(endpoint, timeout=_REACH_SECONDS)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return f"the hub at {endpoint} does not answer ({type(error).__name__})"
    return None
