"""What is committed can be found, verified, leased, removed and collected."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from mlos.errors import CorruptError, NotFoundError, RefusedError, UsageError
from mlos.model import Manifest
from mlos.store import Collected, InstallRecord, Package, Store

Install = Callable[..., Package]
Describe = Callable[..., Manifest]
NOW = InstallRecord(installed_at=datetime(2026, 1, 1, tzinfo=UTC), axon="0.1")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_committed_package_is_whole_and_read_only(store: Store, install: Install) -> None:
    package = install(store)

    assert store.packages() == [package]
    assert package.owns_name
    assert package.path("golden/record.json").read_bytes() == b"[1, 2]"
    assert package.path("golden").is_dir()
    assert package.path("model.onnx").stat().st_mode & 0o777 == 0o444
    assert (package.folder / "manifest.json").read_bytes() == package.manifest.canonical()
    assert package.digest == package.manifest.digest == package.folder.name
    assert store.verify(package) == ()
    store.check(package)
    assert _names(store.root / "staging") == []


def test_a_package_gives_only_files_it_lists(store: Store, install: Install) -> None:
    package = install(store)

    for relative in ("../../lock", "missing", "/etc/passwd", "gold", ""):
        with pytest.raises(NotFoundError):
            package.path(relative)


def test_only_listed_files_enter_the_package(store: Store, describe: Describe) -> None:
    with store.staging() as staging:
        (staging.folder / "model.onnx").write_bytes(b"1")
        (staging.folder / "setup.py").write_bytes(b"2")
        package = store.commit(staging, describe({"model.onnx": b"1"}), NOW)

    assert _names(package.folder) == ["manifest.json", "model.onnx"]


def test_an_empty_store_is_empty_and_stays_unwritten(store: Store) -> None:
    assert store.packages() == []
    assert store.broken() == []
    assert store.generation() == 0
    assert store.gc() == Collected(0, 0)
    with pytest.raises(NotFoundError, match="installed: nothing"):
        store.find("bert")
    with pytest.raises(NotFoundError):
        store.remove("bert")
    assert not store.root.exists()


def test_equal_files_are_stored_once(store: Store, install: Install) -> None:
    one = install(store, {"model.onnx": b"same", "copy.onnx": b"same"}, repository="org/one")
    two = install(store, {"model.onnx": b"same"}, repository="org/two")

    places = (one.path("model.onnx"), one.path("copy.onnx"), two.path("model.onnx"))
    assert len({place.stat().st_ino for place in places}) == 1


@pytest.mark.parametrize(
    ("staged", "expected", "got"),
    [
        (b"longer than it should be", "7 bytes", "24 bytes"),
        (b"A graph", _sha256(b"a graph"), _sha256(b"A graph")),
        (None, "7 bytes", "no file"),
    ],
)
def test_a_wrong_file_is_refused_by_name(
    store: Store, describe: Describe, staged: bytes | None, expected: str, got: str
) -> None:
    with store.staging() as staging:
        if staged is not None:
            (staging.folder / "model.onnx").write_bytes(staged)
        with pytest.raises(CorruptError) as refused:
            store.commit(staging, describe({"model.onnx": b"a graph"}), NOW)

    assert refused.value.field == "model.onnx"
    assert "model.onnx" in refused.value.message
    assert refused.value.expected == expected
    assert refused.value.got == got
    assert store.packages() == []
    assert _names(store.root / "blobs" / "sha256") == []


@pytest.mark.parametrize("how", ["link", "hard link", "folder link", "folder", "pipe"])
def test_a_staged_file_must_be_a_regular_file_of_its_own(
    store: Store, describe: Describe, tmp_path: Path, how: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "model.onnx").write_bytes(b"a graph")
    with store.staging() as staging:
        place = staging.folder / "weights" / "model.onnx"
        if how == "folder link":
            place.parent.symlink_to(outside)
        else:
            place.parent.mkdir()
        match how:
            case "link":
                place.symlink_to(outside / "model.onnx")
            case "hard link":
                place.hardlink_to(outside / "model.onnx")
            case "folder":
                place.mkdir()
            case "pipe":
                os.mkfifo(place)
        with pytest.raises(RefusedError) as refused:
            store.commit(staging, describe({"weights/model.onnx": b"a graph"}), NOW)

    assert refused.value.field == "weights/model.onnx"
    assert not isinstance(refused.value, CorruptError)
    assert (outside / "model.onnx").stat().st_mode & 0o200, "somebody else's file was made read-only"


@pytest.mark.parametrize(
    "files",
    [{"manifest.json": b"{}"}, {"manifest.json/model.onnx": b"1"}, {"model": b"1", "model/a": b"2"}],
)
def test_paths_that_cannot_stand_together_are_refused(
    store: Store, describe: Describe, files: dict[str, bytes]
) -> None:
    with store.staging() as staging, pytest.raises(RefusedError):
        store.commit(staging, describe(files), NOW)
    assert store.packages() == []


def test_a_path_listed_twice_is_refused(store: Store, describe: Describe) -> None:
    manifest = describe({"model.onnx": b"1"})
    twice = manifest.model_copy(update={"files": manifest.files * 2})
    with store.staging() as staging:
        (staging.folder / "model.onnx").write_bytes(b"1")
        with pytest.raises(RefusedError, match="twice"):
            store.commit(staging, twice, NOW)


def test_find_knows_every_name_of_a_package(store: Store, install: Install) -> None:
    package = install(store)

    for query in (
        "bert",
        "bert-base",
        "org/bert-base",
        "hf/org/bert-base",
        "hf://org/bert-base",
        "hf/org/bert-base@c1",
        "hf/org/bert-base@latest",
        package.digest,
        package.digest[:12],
        f"sha256:{package.digest}",
    ):
        assert store.find(query) == package
    for query in ("hf/org/bert-base@c2", "hf/org/bert", package.digest[:11], "", "BERT", "../bert", "bert\0"):
        with pytest.raises(NotFoundError):
            store.find(query)


def test_the_last_installed_owns_a_name(store: Store, install: Install) -> None:
    old = install(store, {"model.onnx": b"1"}, commit="c1", minute=1)
    new = install(store, {"model.onnx": b"2"}, commit="c2", minute=3)
    late = install(store, {"model.onnx": b"3"}, repository="other/bert-base", minute=2)

    assert [item.digest for item in store.packages()] == [new.digest, late.digest, old.digest]
    assert [item.owns_name for item in store.packages()] == [True, False, False]
    assert not late.owns_name, "commit says itself that a newer package has the name"
    assert store.find("bert").digest == new.digest
    assert store.find("hf/org/bert-base").digest == new.digest
    assert store.find("hf/org/bert-base@c1").digest == old.digest
    assert store.find("other/bert-base").digest == late.digest


def test_an_ambiguous_digest_prefix_is_a_usage_error(store: Store, install: Install) -> None:
    one = install(store, repository="org/one")
    two = install(store, repository="org/two")
    # Digests that begin alike cannot be made to order: let one reference borrow such a digest.
    ref = next(file for file in (store.root / "refs").iterdir() if one.digest in file.read_text())
    borrowed = two.digest[:20] + one.digest[20:]
    ref.write_text(ref.read_text().replace(one.digest, borrowed))

    with pytest.raises(UsageError) as ambiguous:
        store.find(two.digest[:12])
    assert borrowed in str(ambiguous.value.got)
    assert store.find(two.digest[:21]).digest == two.digest


def test_not_found_lists_at_most_ten_names(store: Store, install: Install) -> None:
    for number in range(12):
        install(
            store, {"model.onnx": b"1"}, name=f"model{number:02}", repository=f"org/m{number}", minute=number
        )

    with pytest.raises(NotFoundError) as missing:
        store.find("gpt")
    assert "model11, model10" in missing.value.message
    assert "model02 and 2 more" in missing.value.message
    assert missing.value.hint == "axon install gpt"


def test_reinstalling_replaces_the_record(store: Store, install: Install) -> None:
    install(store, minute=1)
    again = install(store, minute=2)

    assert store.packages() == [again]
    assert again.record.installed_at.minute == 2


def test_the_record_is_kept_in_utc() -> None:
    local = datetime(2026, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert InstallRecord(installed_at=local, axon="0.1").installed_at.isoformat() == "2026-01-01T00:00:00+00:00"
    with pytest.raises(ValueError, match="timezone"):
        InstallRecord.model_validate({"installed_at": "2026-01-01T00:00:00", "axon": "0.1"})


def test_generation_changes_with_every_install_and_removal(store: Store, install: Install) -> None:
    seen = {store.generation()}
    for number in range(6):
        install(store, {"model.onnx": b"1"}, repository=f"org/m{number}", minute=number)
        seen.add(store.generation())
    for _ in range(6):
        store.remove("bert")
        seen.add(store.generation())

    assert len(seen) == 13
    store.gc()
    assert store.generation() in seen


def test_generation_grows_although_the_clock_does_not(store: Store, install: Install) -> None:
    install(store)
    ahead = (store.generation() // 10**9 + 3600) * 10**9
    os.utime(store.root / "refs", ns=(ahead, ahead))

    install(store, commit="c2")
    assert store.generation() == ahead + 1
    store.remove("bert")
    assert store.generation() == ahead + 2


def test_removal_hides_at_once_and_gc_deletes(store: Store, install: Install) -> None:
    shared = install(store, {"model.onnx": b"shared", "own": b"12345"}, repository="org/one")
    other = install(store, {"model.onnx": b"shared"}, repository="org/two")

    removed = store.remove("org/one")

    assert removed.digest == shared.digest
    assert [item.digest for item in store.packages()] == [other.digest]
    assert shared.folder.exists()
    expected = Collected(2, len(b"12345") + len(shared.manifest.canonical()))
    assert store.gc(dry_run=True) == expected
    assert shared.folder.exists()
    assert store.gc() == expected
    assert not shared.folder.exists()
    assert store.verify(other) == ()
    assert store.gc() == Collected(0, 0)
    assert _names(store.root / "leases") == [other.digest]


def test_gc_leaves_alone_what_is_leased(store: Store, install: Install) -> None:
    package = install(store)
    with store.lease(package), store.lease(package):
        store.remove("bert")
        assert store.gc() == Collected(0, 0)
        assert store.verify(package) == ()

    assert store.gc().files == 4
    with pytest.raises(NotFoundError, match="has been removed"), store.lease(package):
        pass


def test_a_package_installed_again_after_removal_is_kept(store: Store, install: Install) -> None:
    install(store)
    store.remove("bert")
    package = install(store)

    assert store.gc() == Collected(0, 0)
    assert store.verify(package) == ()


def test_gc_leaves_staging_in_use_alone(store: Store, install: Install, describe: Describe) -> None:
    with store.staging() as staging:
        (staging.folder / "model.onnx").write_bytes(b"1")
        with Store(store.root).staging():
            pass
        store.gc()
        package = store.commit(staging, describe({"model.onnx": b"1"}), NOW)
    assert store.verify(package) == ()


def test_a_partial_download_survives_and_can_be_resumed(store: Store) -> None:
    key = "ab" * 32
    with store.partial(key) as path:
        path.write_bytes(b"half")
    with store.partial(key) as path:
        assert path.read_bytes() == b"half"
        assert store.gc() == Collected(0, 0), "a partial in use was collected"
        path.write_bytes(b"whole")
        with store.staging() as staging:
            path.rename(staging.folder / "model.onnx")
    assert _names(store.root / "partial") == []


def test_gc_drops_partials_nobody_holds(store: Store) -> None:
    with store.partial("ab" * 20) as path:
        path.write_bytes(b"half")
    assert store.gc(dry_run=True) == Collected(1, 4)
    assert store.gc() == Collected(1, 4)
    assert _names(store.root / "partial") == []
