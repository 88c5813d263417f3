"""Where models come from: one protocol, one file per source, found through entry points (``mlos.sources.v1``).

A source turns a reference into a :class:`Resolution` (a locked commit and the files that packaging needs, with
the hashes that somebody answers for) and brings those files, checked, into a folder. It knows nothing of
formats' insides, of conversion or of packages.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from mlos.console import Console
from mlos.errors import NotFoundError
from mlos.model import Reference, Weights

if TYPE_CHECKING:
    from mlos.store import Store

_GROUP = "mlos.sources.v1"


@dataclass(frozen=True)
class SourceFile:
    """One file of a repository. ``size`` is in bytes; one of the two hashes is declared, in hexadecimal.

    ``git_sha1`` is git's blob hash: the SHA-1 of ``blob SIZE``, a NUL and the content.
    """

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def key(self) -> str:
        """The declared hash: what the file's content is known by before it is here."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True)
class Resolution:
    """What a reference stands for right now; from here on only ``commit`` counts.

    ``size`` is in bytes: what will be fetched or made. ``files`` is empty where the source makes them.
    ``parameters`` is the model's number as the source declares it, None where it declares none.
    ``notes`` are for a person: a moved repository, a choice among several files. ``warnings`` may matter later.
    """

    reference: Reference
    commit: str
    weights: Weights
    licence: str | None
    files: tuple[SourceFile, ...]
    size: int
    parameters: int | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Source(Protocol):
    """One kind of place that models come from."""

    remote: ClassVar[bool]
    """Whether it needs the network."""

    forms: ClassVar[bool]
    """Whether a reference may ask for a form that its repository publishes as a file of its own (``+Q8_0``)."""

    def resolve(self, reference: Reference, *, allow_pickle: bool = False) -> Resolution:
        """Find what ``reference`` names, without bringing the weights; pickles only with ``allow_pickle``."""
        ...

    def fetch(self, resolution: Resolution, destination: Path, store: Store, console: Console) -> None:
        """Bring every file of ``resolution`` into ``destination``, its hash checked before it has its name."""
        ...


def offline() -> bool:
    """Whether the hub client's environment variables forbid the network, read now."""
    named = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return named.upper() in {"1", "ON", "YES", "TRUE"}


def source_of(reference: Reference) -> Source:
    """The source that ``reference`` names.

    Raises:
        NotFoundError: if no installed plug-in provides it.
    """
    known = {point.name: point for point in entry_points(group=_GROUP)}
    if reference.source not in known:
        raise NotFoundError(
            f"no source called {reference.source!r}",
            field="reference",
            expected=" or ".join(sorted(known)),
            got=reference.source,
            hint="write source/namespace/name[@revision], for example hf/google-bert/bert-base-uncased@latest",
        )
    made: Source = known[reference.source].load()()
    return made
