"""Models made here from a recipe of the catalogue: ``seeded/namespace/name``, and ``seeded/tiny/NAME``.

They need no network and go through the very same pipeline as published weights. The commit is the SHA-256 of
the recipe: the same commit is the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from mlos.axon.seeding import recipe_digest, seed
from mlos.axon.sources import Resolution
from mlos.catalogue import Entry, catalogue
from mlos.console import Console
from mlos.errors import NotFoundError
from mlos.model import Reference
from mlos.store import Store

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a parameter, by the element type that a configuration names."""


class SeededSource:
    """Recipes of the catalogue."""

    remote: ClassVar[bool] = False
    forms: ClassVar[bool] = False

    def resolve(self, reference: Reference, *, allow_pickle: bool = False) -> Resolution:
        """Find the recipe.

        Raises:
            NotFoundError: no such recipe, or it has another revision.
        """
        entry = _entry(reference)
        tiny = entry.is_tiny(reference)
        commit = recipe_digest(entry, tiny)
        if not reference.wants_latest and reference.revision != commit:
            raise NotFoundError(
                f"{reference.at(None)} has another recipe in this version of MLOS",
                field="revision",
                expected=commit,
                got=reference.revision,
                hint=f"axon install {reference.at(None)}",
            )
        assert entry.seeded is not None  # _entry saw to it
        parameters = entry.seeded.tiny.parameters if tiny else entry.parameters
        config = catalogue().config(entry, tiny)
        return Resolution(
            reference=reference.at(commit),
            commit=commit,
            weights="seeded",
            licence=entry.licence,
            files=(),
            size=parameters * _BYTES[str(config.get("dtype") or config.get("torch_dtype") or "float32")],
            parameters=parameters,
        )

    def fetch(self, resolution: Resolution, destination: Path, store: Store, console: Console) -> None:
        """Make the repository."""
        entry = _entry(resolution.reference)
        seed(entry, entry.is_tiny(resolution.reference), destination, console)


def _entry(reference: Reference) -> Entry:
    entry = catalogue().match(reference)
    if entry is None or entry.seeded is None:
        known = [
            text
            for each in catalogue().entries.values()
            for text in (each.references.seeded, each.tiny_reference)
            if text is not None
        ]
        raise NotFoundError(
            f"there is no recipe for {reference.at(None)}",
            field="reference",
            expected=" or ".join(known),
            got=str(reference.at(None)),
        )
    return entry
