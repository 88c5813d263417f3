"""Where things are in a store. Every name is a hexadecimal digest, so nothing a person types becomes a path."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from mlos.errors import UsageError

MANIFEST = "manifest.json"
"""Name of the manifest in a package folder; no packaged file may have it."""
DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}|[0-9a-f]{128}")


@dataclass(frozen=True)
class Layout:
    """The folders of the store at ``root``."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by whoever changes what is visible."""
        return self.root / "lock"

    @property
    def blobs(self) -> Path:
        """Each file's bytes once, read-only, named by their SHA-256."""
        return self.root / "blobs" / "sha256"

    @property
    def packages(self) -> Path:
        """One folder per package, named by its manifest's SHA-256, of hard links to blobs."""
        return self.root / "packages"

    @property
    def refs(self) -> Path:
        """One file per installed reference: what makes a package visible."""
        return self.root / "refs"

    @property
    def staging(self) -> Path:
        """Work in progress, one folder for each."""
        return self.root / "staging"

    @property
    def partials(self) -> Path:
        """Downloads that may be resumed."""
        return self.root / "partial"

    @property
    def leases(self) -> Path:
        """One file per package, share-locked by those who use it."""
        return self.root / "leases"

    def create(self) -> None:
        """Make the folders that are not there."""
        for folder in (self.blobs, self.packages, self.refs, self.staging, self.partials, self.leases):
            folder.mkdir(parents=True, exist_ok=True)

    def blob(self, sha256: str) -> Path:
        """The blob of these bytes."""
        return self.blobs / _name(sha256, DIGEST)

    def package(self, digest: str) -> Path:
        """The folder of the package with this digest."""
        return self.packages / _name(digest, DIGEST)

    def lease(self, digest: str) -> Path:
        """The lease file of the package with this digest."""
        return self.leases / _name(digest, DIGEST)

    def ref(self, reference: str) -> Path:
        """The file of this reference: named by its SHA-256, since a reference may hold or be a path."""
        return self.refs / f"{hashlib.sha256(reference.encode('utf-8', 'surrogatepass')).hexdigest()}.json"

    def partial(self, key: str) -> Path:
        """The resumable download with this key, a digest of 40, 64 or 128 hexadecimal digits."""
        return self.partials / _name(key, _KEY)


def _name(text: str, grammar: re.Pattern[str]) -> str:
    if not grammar.fullmatch(text):
        raise UsageError(
            f"not a digest: {text[:200]!r}",
            field="digest",
            expected="lower-case hexadecimal digits",
            got=repr(text[:200]),
        )
    return text
