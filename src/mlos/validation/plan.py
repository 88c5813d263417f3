"""Which models a run validates, and with whose weights: the catalogue and the flags, nothing measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import Literal, TypeAlias

import httpx2
from huggingface_hub import constants

from mlos.catalogue import Catalogue, Entry
from mlos.errors import NotFoundError, UsageError
from mlos.model import Reference, Weights

WeightsChoice: TypeAlias = Literal["auto", "hub", "seeded", "trained", "small"]

ALL = "all"
"""The set of every model; the others are named by the entries of the catalogue."""
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
        models: short names of the catalogue; ``NAME+FORM`` is a variant of one, such as ``minilm+int8``.
        references: full references, taken as they are; ``+FORM`` behind one likewise.
        set_name: ``all``, or a set of the catalogue's, where neither names nor references are given.
        weights: whose weights; ``auto`` takes trained ones that an installed Python package carries, else the
            hub's where it answers, else seeded ones. ``small`` takes the small seeded variants. A model of a
            set that has no such weights is validated with others, and the plan says so.

    Raises:
        NotFoundError: if the catalogue has no such model, or the model no such weights.
        UsageError: if there is no such set.
    """
    planned = [_by_name(catalogue, name, weights) for name in models]
    planned += [_by_reference(catalogue, text) for text in references]
    if planned:
        return tuple(planned)
    known = sorted({ALL}.union(*(entry.sets for entry in catalogue.entries.values())))
    if set_name not in known:
        raise UsageError(
            f"there is no set of models called {set_name!r}",
            field="set",
            expected=", ".join(known),
            got=repr(set_name),
        )
    return tuple(
        _by_entry(entry, weights, demanded=False)
        for entry in catalogue.entries.values()
        if set_name in (ALL, *entry.sets)
    )


def _by_reference(catalogue: Catalogue, text: str) -> PlannedModel:
    original, form = _split(text)
    resolved = catalogue.resolve(original)
    entry = resolved.entry
    planned = PlannedModel(
        name=entry.name if entry else resolved.reference.name,
        reference=str(resolved.reference),
        task=entry.tasks[0] if entry else None,
        weights_reason="the reference was given",
        entry=entry,
    )
    return _in_form(planned, form)


def _split(text: str) -> tuple[str, str]:
    """What is asked for, and the form of it behind a ``+``; the path of a file may hold one."""
    if text.startswith("file:"):
        return text, ""
    original, _, form = text.partition("+")
    return original, form


def _in_form(planned: PlannedModel, form: str) -> PlannedModel:
    """The variant of the model in this form; the model itself where that is empty."""
    if not form:
        return planned
    return replace(planned, name=f"{planned.name}-{form}", reference=f"{planned.reference}+{form}")


def _by_name(catalogue: Catalogue, text: str, weights: WeightsChoice) -> PlannedModel:
    name, form = _split(text)
    entry = catalogue.entries.get(name)
    if entry is None:
        raise NotFoundError(
            f"the catalogue has no model named {name!r}",
            field="models",
            expected=", ".join(catalogue.entries),
            got=repr(name),
            hint="give a model outside the catalogue as --model source/namespace/name",
        )
    return _in_form(_by_entry(entry, weights, demanded=True), form)


def _by_entry(entry: Entry, weights: WeightsChoice, *, demanded: bool) -> PlannedModel:
    reference, reason = _choose(entry, weights, demanded=demanded)
    return PlannedModel(entry.name, reference, entry.tasks[0], reason, entry)


def _choose(entry: Entry, weights: WeightsChoice, *, demanded: bool) -> tuple[str, str]:
    given = entry.references.all()
    if weights == "small" and entry.tiny_reference:
        return entry.tiny_reference, "seeded: the small variant for tests"
    if weights in ("hub", "seeded", "trained") and weights in given:
        return given[weights], f"{weights}: asked for"
    if weights != "auto" and demanded:
        raise NotFoundError(
            f"{entry.name} has no {weights} weights",
            field="weights",
            expected=", ".join(given),
            got=weights,
        )
    reference, reason = _best(given)
    return reference, reason if weights == "auto" else f"{reason}; it has no {weights} ones"


def _best(given: Mapping[Weights, str]) -> tuple[str, str]:
    """Trained weights that are at hand, else the hub's where it answers, else seeded ones."""
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
