"""What the store holds: packages, what is known about their install, and references that lead to none."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from mlos.errors import NotFoundError, RefusedError
from mlos.model import Manifest
from mlos.store.layout import MANIFEST


class InstallRecord(BaseModel):
    """What differs between two installs of the same package."""

    model_config = ConfigDict(frozen=True)

    installed_at: AwareDatetime
    """In UTC, whatever zone it was given in."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Duration of each step of the install: download, verify, convert, parity, package."""
    axon: str
    """Version of the program that installed it."""

    @field_validator("installed_at")
    @classmethod
    def _in_utc(cls, moment: datetime) -> datetime:
        return moment.astimezone(UTC)


class Ref(BaseModel):
    """What a file in ``refs/`` says."""

    model_config = ConfigDict(frozen=True)

    reference: str
    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    record: InstallRecord


@dataclass(frozen=True)
class Package:
    """An installed package. ``owns_name``: its short name leads to it, as the last installed of that name."""

    manifest: Manifest
    digest: str
    folder: Path
    record: InstallRecord
    owns_name: bool

    @property
    def reference(self) -> str:
        """Where it came from, at its commit."""
        return self.manifest.reference

    @property
    def name(self) -> str:
        """Its short name."""
        return self.manifest.name

    def path(self, relative: str) -> Path:
        """Where one of its files, or a folder of them, is.

        Raises:
            NotFoundError: if the manifest lists no such file or folder.
        """
        listed = (MANIFEST, *(file.path for file in self.manifest.files))
        if relative not in listed and not any(path.startswith(f"{relative}/") for path in listed):
            raise NotFoundError(
                f"package {self.name} has no file {relative!r}", expected=", ".join(listed), got=repr(relative)
            )
        return self.folder / relative


@dataclass(frozen=True)
class Broken:
    """An installed reference whose package cannot be used; ``error`` says why and what to do.

    Where not even the reference can be read, ``reference`` is the file's path below the store (by which it can
    be removed), ``name`` is empty, and ``digest`` and ``record`` are absent.
    """

    reference: str
    name: str
    digest: str | None
    record: InstallRecord | None
    error: RefusedError
