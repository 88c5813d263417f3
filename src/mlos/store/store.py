"""The store: packages by content, visible whole or not at all.

Reading (``packages``, ``find``, ``verify``, ``lease``, ``generation``) needs no lock and works on a read-only
store. Commit, remove and collection exclude each other by one lock, which is never held while hashing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from mlos.errors import CorruptError, NotFoundError, RefusedError, UsageError
from mlos.model import Manifest, Reference
from mlos.store import scratch
from mlos.store.collect import Collected, collect
from mlos.store.commit import draft, publish, visible_change
from mlos.store.disk import changing, require_room, room_explained
from mlos.store.integrity import Fault, examine, fingerprint, open_regular, read_manifest
from mlos.store.layout import Layout
from mlos.store.locks import locked
from mlos.store.package import Broken, InstallRecord, Package, Ref

_DIGEST_PREFIX = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})")
_LISTED = 10
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Staging:
    """Work in progress: put the files of a package into ``folder``, under their paths in the manifest."""

    folder: Path


class Store:
    """The packages below ``root``, which is created by the first change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._layout = Layout(root)

    def require_room(self, bytes_needed: int) -> None:
        """Raise :class:`NoRoomError`, naming both amounts, unless the disk has ``bytes_needed`` free."""
        require_room(self.root, bytes_needed)

    @contextmanager
    def staging(self, bytes_needed: int | None = None) -> Iterator[Staging]:
        """A private folder for one install, deleted at the end; those of processes that died go first.

        A disk that fills up while the body works is reported as :class:`NoRoomError`.
        """
        with ExitStack() as held:
            with changing(self.root, bytes_needed):
                self._layout.create()
                for path in scratch.abandoned(self._layout.staging):
                    scratch.discard(path)
                if bytes_needed is not None:
                    self.require_room(bytes_needed)
                folder = held.enter_context(scratch.area(self._layout.staging)) / "files"
                folder.mkdir()
            with room_explained(self.root, bytes_needed):
                yield Staging(folder)

    @contextmanager
    def partial(self, key: str) -> Iterator[Path]:
        """The file of a download that can be resumed, keyed by a digest (40, 64 or 128 hexadecimal digits).

        The file may hold what an earlier, even a killed process left; while the body works nobody else gets it.
        Move it into a staging folder once it is whole, or delete it.
        """
        path = self._layout.partial(key)
        with ExitStack() as held:
            with changing(self.root):
                self._layout.create()
                held.enter_context(scratch.owned(path))
            with room_explained(self.root):
                yield path

    def commit(self, staging: Staging, manifest: Manifest, record: InstallRecord) -> Package:
        """Make a package of the staged files that ``manifest`` lists; other staged files are left out.

        The files are hashed, and moved out of the staging folder. A reference that is installed already gets
        the new package and record; what is corrupt of the same content is repaired.

        Raises:
            CorruptError: a file is missing or not what its entry says; names file, expected, got.
            RefusedError: a file is a link or no regular file, or the store is read-only.
            NoRoomError: the disk is full; the store is as it was.
        """
        ref = Ref(reference=manifest.reference, name=manifest.name, digest=manifest.digest, record=record)
        with changing(self.root, manifest.size):
            built = draft(staging.folder.parent, staging.folder, manifest)
            publish(self._layout, built, ref)
        newer = any(
            item.name == ref.name and item.digest != ref.digest and _installed_at(item) > record.installed_at
            for item in self._scan()
        )
        return Package(manifest, ref.digest, self._layout.package(ref.digest), record, owns_name=not newer)

    def packages(self) -> list[Package]:
        """All usable packages, last installed first. The others are :meth:`broken`."""
        return [item for item in self._scan() if isinstance(item, Package)]

    def broken(self) -> list[Broken]:
        """Installed references whose package cannot be used: folder or manifest missing, changed or too new."""
        return [item for item in self._scan() if isinstance(item, Broken)]

    def find(self, query: str) -> Package:
        """The package that ``query`` names; of several, the last installed.

        ``query`` is a short name, a repository name with or without its namespace, a reference with or without
        its revision, or a digest or at least the first 12 digits of one.

        Raises:
            NotFoundError: nothing installed has that name; says what is installed.
            UsageError: several packages' digests begin like this.
            RefusedError: the package it names is broken (CorruptError), or of a newer schema.
        """
        found = self._match(query)
        if isinstance(found, Broken):
            raise found.error
        return found

    def verify(self, package: Package) -> tuple[Fault, ...]:
        """Hash everything of ``package`` again and return the differences; none means that it is sound."""
        faults = list(examine(package.folder, package.manifest, package.digest))
        for file in package.manifest.files:
            # As a rule the blob is the same file as the link that was just hashed.
            blob, link = self._layout.blob(file.sha256), package.folder / file.path
            if blob.exists() and not (link.exists() and link.samefile(blob)):
                got = fingerprint(blob)
                if got != file.sha256:
                    faults.append(Fault(self._relative(blob), "changed", file.sha256, got))
        ref = self._layout.ref(package.reference)
        if ref.exists() and isinstance(self._open(ref), Broken) and not faults:
            faults.append(
                Fault(self._relative(ref), "changed", f"a reference to {package.digest}", "another content")
            )
        return tuple(faults)

    def check(self, package: Package) -> None:
        """Raise :class:`CorruptError` naming the first file of ``package`` that is not as it was committed.

        It reads nothing outside the package's folder, so that a process confined to that can call it.
        """
        faults = examine(package.folder, package.manifest, package.digest)
        if faults:
            first, more = faults[0], len(faults) - 1
            raise CorruptError(
                f"package {package.name} ({package.digest[:12]}): file {first.path} is {first.problem}"
                + (f", and {more} more" if more else ""),
                field=first.path,
                expected=first.expected or "no such file",
                got=first.got or "no such file",
                hint=f"axon install {package.reference}",
            )

    def remove(self, query: str) -> Package | Broken:
        """Take away the reference that ``query`` names, as in :meth:`find`; :meth:`gc` deletes the files."""
        with changing(self.root):
            found = self._match(query)
            with locked(self._layout.lock), visible_change(self._layout):
                self._ref_file(found).unlink(missing_ok=True)
        return found

    def gc(self, dry_run: bool = False) -> Collected:
        """Delete what no reference, lease or living process needs, and say how much; or only say it."""
        if not self.root.exists():
            return Collected(0, 0)
        with changing(self.root):
            if not dry_run:
                self._layout.create()
            with locked(self._layout.lock):
                referenced = {item.digest for item in self._scan() if item.digest is not None}
                return collect(self._layout, referenced, dry_run=dry_run)

    @contextmanager
    def lease(self, package: Package) -> Iterator[None]:
        """Keep the files of ``package`` from being collected, also after its removal.

        Raises:
            NotFoundError: if they have been collected already.
        """
        with ExitStack() as held:
            with changing(self.root):
                held.enter_context(locked(self._layout.lease(package.digest), shared=True))
            if not package.folder.is_dir():
                raise NotFoundError(
                    f"package {package.name} ({package.digest[:12]}) has been removed",
                    hint=f"axon install {package.reference}",
                )
            yield

    def generation(self) -> int:
        """A number that changes whenever a package is installed or removed; costs one ``stat``."""
        try:
            return self._layout.refs.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise self._no_store(error) from error

    def _no_store(self, error: OSError) -> RefusedError:
        return RefusedError(
            f"the store {str(self.root)[:200]} cannot be read: {error.strerror}",
            hint="point MLOS_HOME at a folder, or make this one readable",
        )

    def _scan(self) -> list[Package | Broken]:
        """Every installed reference, last installed first."""
        try:
            files = sorted(file for file in self._layout.refs.iterdir() if file.suffix == ".json")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._no_store(error) from error
        found = [item for file in files if (item := self._open(file)) is not None]
        found.sort(key=_installed_at, reverse=True)
        owners: dict[str, Package | Broken] = {}
        for item in found:
            owners.setdefault(item.name, item)
        return [
            replace(item, owns_name=owners[item.name] is item) if isinstance(item, Package) else item
            for item in found
        ]

    def _open(self, file: Path) -> Package | Broken | None:
        """What a file in ``refs/`` leads to; nothing if the reference has been removed meanwhile."""
        try:
            with open_regular(file) as stream:
                ref = Ref.model_validate_json(stream.read())
            if self._layout.ref(ref.reference) != file:
                raise ValueError("it is the file of another reference")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._unreadable(file, error)
        folder = self._layout.package(ref.digest)
        try:
            manifest = read_manifest(folder, ref.digest)
            if (manifest.reference, manifest.name) != (ref.reference, ref.name):
                raise CorruptError(
                    f"{self._relative(file)} names another package than {ref.digest[:12]}",
                    field=self._relative(file),
                    expected=f"{manifest.name} of {manifest.reference}",
                    got=f"{ref.name} of {ref.reference}",
                )
        except RefusedError as error:
            if not file.exists():
                return None
            explained = type(error)(
                f"package {ref.name} ({ref.reference}) cannot be used: {error.message}",
                hint=error.hint or f"axon install {ref.reference}",
                field=error.field,
                expected=error.expected,
                got=error.got,
            )
            return Broken(ref.reference, ref.name, ref.digest, ref.record, explained)
        return Package(manifest, ref.digest, folder, ref.record, owns_name=False)

    def _unreadable(self, file: Path, error: Exception) -> Broken:
        where = self._relative(file)
        why = f"{error.error_count()} errors" if isinstance(error, ValidationError) else str(error)
        return Broken(
            where,
            "",
            None,
            None,
            CorruptError(
                f"{where} cannot be read: {why}",
                field=where,
                expected="an installed reference",
                got=why,
                hint=f"axon remove {where}, then install the model again",
            ),
        )

    def _match(self, query: str) -> Package | Broken:
        items = self._scan()
        wanted = _normal(query)
        for matches in (
            lambda item: item.name == query,
            lambda item: wanted in _references(item) or self._ref_file(item) == self._layout.ref(query),
            lambda item: query in _repository_names(item),
        ):
            for item in items:
                if matches(item):
                    return item
        prefix = _DIGEST_PREFIX.fullmatch(query)
        if prefix:
            named = [item for item in items if item.digest is not None and item.digest.startswith(prefix[1])]
            if len({item.digest for item in named}) > 1:
                raise UsageError(
                    f"{query} begins the digests of {len(named)} packages",
                    field="digest",
                    expected="more digits",
                    got=", ".join(str(item.digest) for item in named[:_LISTED]),
                )
            if named:
                return named[0]
        raise _not_installed(query, items)

    def _ref_file(self, item: Package | Broken) -> Path:
        return self.root / item.reference if item.digest is None else self._layout.ref(item.reference)

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _installed_at(item: Package | Broken) -> datetime:
    return item.record.installed_at if item.record else _NEVER


def _normal(query: str) -> str:
    """``query`` as references are stored, without the revision that stands for the last installed."""
    try:
        reference = Reference.parse(query)
    except UsageError:
        return query
    return str(reference.at(None) if reference.wants_latest else reference)


def _references(item: Package | Broken) -> tuple[str, str]:
    return item.reference, _without_revision(item)


def _without_revision(item: Package | Broken) -> str:
    """Its reference at no commit; what names a variant stays."""
    commit = item.manifest.commit if isinstance(item, Package) else ""
    body, at, rest = item.reference.rpartition(f"@{commit}")
    return body + "".join(rest.partition("+")[1:]) if at else item.reference


def _repository_names(item: Package | Broken) -> tuple[str, ...]:
    try:
        reference = Reference.parse(_without_revision(item))
    except UsageError:
        return ()
    form = f"+{reference.variant}" if reference.variant else ""
    return reference.name + form, reference.path + form


def _not_installed(query: str, items: list[Package | Broken]) -> NotFoundError:
    shown = query if len(query) <= 200 else query[:200] + "…"
    names = list(dict.fromkeys(item.name or item.reference for item in items))
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    return NotFoundError(
        f"model {shown!r} is not installed; installed: {listed or 'nothing'}",
        field="model",
        expected=listed or "an installed model",
        got=repr(shown),
        hint=f"axon install {shown}",
    )
