"""Reading the catalogue's files, and finding the model that a person's words mean."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mlos.catalogue.entry import Entry, GoldenRequest, SeededRecipe
from mlos.errors import MlosError, NotFoundError
from mlos.model import Reference

_SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_Model = TypeVar("_Model", bound=BaseModel)


class TaskDefaults(BaseModel):
    """What serves a model outside the catalogue, for one task.

    ``{mask}`` in a request's text stands for the mask token of the model's tokenizer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tolerance: str
    golden: tuple[GoldenRequest, ...] = ()
    """None where there is nothing to ask every model alike: tensors are each model's own."""


@dataclass(frozen=True)
class Resolved:
    """What a person's words mean: a reference, its entry, and a note where a name was replaced."""

    reference: Reference
    entry: Entry | None
    note: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """All entries by short name, the defaults by task, and the folder they were read from."""

    entries: Mapping[str, Entry]
    defaults: Mapping[str, TaskDefaults]
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """Read a catalogue's folder: ``models/*.toml``, ``configs/*.json``, media and ``defaults.toml``.

        A golden request names an image by its file in ``images/``, a sound by its file in ``audio/``.

        Raises:
            MlosError: naming the file, and the place in it, of the first thing that is wrong.
        """
        entries: dict[str, Entry] = {}
        owners: dict[str, str] = {}
        for path in sorted((folder / "models").glob("*.toml")):
            entry = _checked(Entry, _with_tokenizer(_with_media(_toml(path), folder, path), path), path)
            if entry.name != path.stem:
                raise _wrong(path, "name", f"the file's name, '{path.stem}'", repr(entry.name))
            tiny = [entry.tiny_reference] if entry.tiny_reference else []
            for reference in (*entry.references.texts(), *tiny, *entry.aliases):
                if reference in owners:
                    raise _wrong(
                        path,
                        "references",
                        "references of no other entry",
                        f"{reference} of {owners[reference]}",
                    )
                owners[reference] = entry.name
            recipe = entry.seeded
            for config in _files_of(recipe) if recipe is not None else ():
                if not (folder / "configs" / config).is_file():
                    raise _wrong(path, "seeded", "files in configs/", repr(config))
            entries[entry.name] = entry
        path = folder / "defaults.toml"
        defaults = {
            task: _checked(TaskDefaults, _with_media(data, folder, path), path, task)
            for task, data in _toml(path).items()
        }
        return cls(MappingProxyType(entries), MappingProxyType(defaults), folder)

    def match(self, reference: Reference) -> Entry | None:
        """The entry that ``reference`` belongs to, by any of its references or aliases, at any revision."""
        for entry in self.entries.values():
            if entry.canonical(reference) is not None:
                return entry
        return None

    def resolve(self, text: str) -> Resolved:
        """What a person typed, as a full reference; short names and aliases are replaced, and the note says so.

        Raises:
            NotFoundError: if the text is a bare name that the catalogue does not have.
            UsageError: if it is neither a name nor a reference.
        """
        name, at, revision = text.partition("@")
        if "/" not in name and _SHORT_NAME.fullmatch(name):
            return self._resolve_name(text, name, revision if at else None)
        reference = Reference.parse(text)
        entry = self.match(reference)
        canonical = entry.canonical(reference) if entry else None
        if entry is None or canonical is None or canonical == reference:
            return Resolved(reference, entry)
        return Resolved(canonical, entry, f"{reference.at(None)} is published as {canonical.at(None)}")

    def _resolve_name(self, text: str, name: str, revision: str | None) -> Resolved:
        entry = self.entries.get(name)
        if entry is None:
            raise NotFoundError(
                f"the catalogue has no model named '{name}'",
                field="reference",
                expected=f"one of {', '.join(self.entries)}, or a full reference",
                got=repr(text),
                hint="write source/namespace/name[@revision] for a model outside the catalogue",
            )
        plain = entry.preferred
        reference = plain if revision is None else Reference.parse(f"{plain}@{revision}")
        return Resolved(reference, entry, f"{name} is {plain}")

    def config(self, entry: Entry, tiny: bool = False) -> dict[str, Any]:
        """The configuration of ``entry``'s seeded recipe as published, or of its small variant.

        Raises:
            NotFoundError: if the model has no seeded recipe.
        """
        if entry.seeded is None:
            raise NotFoundError(f"{entry.name} has no seeded recipe")
        published: dict[str, Any] = json.loads((self.folder / "configs" / entry.seeded.config).read_bytes())
        labels = entry.seeded.labels
        if labels is not None:
            names = [*labels.first, *json.loads((self.folder / "configs" / labels.file).read_bytes())]
            published["id2label"] = {str(number): name for number, name in enumerate(names)}
        return published | entry.seeded.tiny.overrides if tiny else published


@cache
def catalogue() -> Catalogue:
    """The catalogue that comes with MLOS."""
    return Catalogue.load(Path(__file__).parent)


def _files_of(recipe: SeededRecipe) -> tuple[str, ...]:
    """What a recipe names in ``configs/``."""
    labels = [recipe.labels.file] if recipe.labels is not None else []
    return recipe.config, *recipe.files.values(), *recipe.tiny.files.values(), *labels


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MlosError(f"catalogue file {path.name} cannot be read: {error}") from error


def _with_tokenizer(data: dict[str, Any], path: Path) -> dict[str, Any]:
    """``data`` of a catalogue file with the recipe of a tokenizer in place of the entry whose it is."""
    recipe = data.get("seeded", {})
    owner = recipe.get("tokenizer", {}).get("of")
    if owner is None:
        return data
    other = path.with_name(f"{owner}.toml")
    shared = _toml(other).get("seeded", {}).get("tokenizer", {}) if other.is_file() else {}
    if not shared or "of" in shared or len(recipe["tokenizer"]) > 1:
        raise _wrong(path, "seeded.tokenizer", "'of' alone, an entry with a tokenizer of its own", repr(owner))
    return data | {"seeded": recipe | {"tokenizer": shared}}


def _with_media(data: dict[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """``data`` of a catalogue file with its golden requests' media in place of the names of their files."""

    def content(kind: str, name: Any) -> bytes:
        try:
            return (folder / kind / Path(str(name)).name).read_bytes()
        except OSError as error:
            raise _wrong(path, "golden", f"a file in {kind}/", repr(name)) from error

    for case in data.get("golden", ()):
        request = case.get("request", {})
        for one, several, kind in (("image", "images", "images"), ("audio", "audios", "audio")):
            if one in request:
                request[one] = content(kind, request[one])
            if several in request:
                request[several] = [content(kind, name) for name in request[several]]
    return data


def _checked(kind: type[_Model], data: Any, path: Path, within: str = "") -> _Model:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ((within,) if within else ()) + first["loc"])
        raise MlosError(
            f"catalogue file {path.name}: {where + ': ' if where else ''}{first['msg']}",
            field=where or None,
            got=repr(first["input"])[:200],
        ) from error


def _wrong(path: Path, field: str, expected: str, got: str) -> MlosError:
    return MlosError(
        f"catalogue file {path.name}: {field}: expected {expected}, got {got}",
        field=field,
        expected=expected,
        got=got,
    )
