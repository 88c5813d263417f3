"""Model references: ``source/namespace/name[@revision][+variant]``, ``file:PATH``, and what may stand in them.

The grammar is strict because parts of a reference become parts of paths and addresses: ASCII only, no empty
or dotted segments, no control characters, bounded lengths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mlos.errors import UsageError

_SOURCE = re.compile(r"[a-z][a-z0-9]{0,15}")
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_VARIANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_HINT = "write source/namespace/name[@revision], for example hf/google-bert/bert-base-uncased@latest"
LATEST = "latest"
"""The revision that asks for the newest commit; it is resolved once and never stored."""


@dataclass(frozen=True)
class Reference:
    """Where a model comes from. ``path`` is ``namespace/name``, or a file system path for ``file:``.

    ``variant`` names a form of it that was made here, in another precision; None is the model itself.
    A ``file:`` reference has none: its path may hold any character.
    """

    source: str
    path: str
    revision: str | None = None
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as a person types it; ``hf://a/b`` and ``hf/a/b`` are the same.

        Raises:
            UsageError: if the text does not follow the grammar.
        """
        if text.startswith("file:"):
            path = text.removeprefix("file:").removeprefix("//")
            if not path or not _plain(path):
                raise _bad(text, "a path after 'file:'")
            return cls("file", path)
        whole, plus, variant = text.replace("://", "/", 1).partition("+")
        if plus and not _VARIANT.fullmatch(variant):
            raise _bad(text, "a precision after '+'")
        body, at, revision = whole.partition("@")
        source, *segments = body.split("/")
        if not _SOURCE.fullmatch(source) or not 1 <= len(segments) <= 2:
            raise _bad(text, "a source, then one or two names")
        if any(not _SEGMENT.fullmatch(segment) or ".." in segment for segment in segments):
            raise _bad(text, "names of letters, digits, '.', '_' and '-'")
        if at and (
            not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision or revision.endswith("/")
        ):
            raise _bad(text, "a branch, tag or commit after '@'")
        return cls(source, "/".join(segments), revision or None, variant or None)

    @property
    def name(self) -> str:
        """The last part of the path, which names the model where no catalogue entry does."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def namespace(self) -> str:
        """The part before the name; empty for a repository without an owner."""
        return self.path.rstrip("/").rpartition("/")[0]

    @property
    def wants_latest(self) -> bool:
        """Whether no particular revision was asked for."""
        return self.revision in (None, LATEST)

    def at(self, revision: str | None) -> Reference:
        """The same model at another revision."""
        return replace(self, revision=revision)

    def form(self, variant: str | None) -> Reference:
        """The same model at the same revision in another form; None is the model as it is packaged first."""
        return replace(self, variant=variant)

    def __str__(self) -> str:
        body = f"file:{self.path}" if self.source == "file" else f"{self.source}/{self.path}"
        at = f"{body}@{self.revision}" if self.revision else body
        return f"{at}+{self.variant}" if self.variant else at


def _plain(path: str) -> bool:
    """Whether a path is Unicode text without control characters (C0, DEL, C1)."""
    codes = [ord(character) for character in path]
    return not any(code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 for code in codes)


def _bad(text: str, expected: str) -> UsageError:
    shown = text if len(text) <= 200 else text[:200] + "…"
    return UsageError(
        f"not a model reference: {shown!r}", field="reference", expected=expected, got=repr(shown), hint=_HINT
    )
