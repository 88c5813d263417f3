"""A full disk, a read-only store, too many open files: a clear error, and the store as it was (F09)."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from mlos.errors import MlosError, NoRoomError, RefusedError, UnavailableError
from mlos.model import Manifest
from mlos.store import InstallRecord, Package, Store

Install = Callable[..., Package]
Describe = Callable[..., Manifest]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, mounted for the test."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        why = mounted.stderr.splitlines()[0]
        pytest.skip(f"a disk cannot be mounted here; the file size limit stands in for it: {why}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_room_is_asked_for_before_the_work(store: Store, small_disk: Path) -> None:
    for full in (Store(small_disk / "a" / "store"), Store(small_disk)):
        full.require_room(1000)
        with pytest.raises(NoRoomError, match=r"needs 5000000 bytes and has \d+ bytes") as refused:
            full.require_room(5_000_000)
        assert refused.value.exit_status == 6
        with pytest.raises(NoRoomError), full.staging(5_000_000):
            pass
    with store.staging(1000):
        pass


def test_a_disk_that_fills_up_while_staging_is_explained_and_left_clean(
    small_disk: Path, install: Install
) -> None:
    store = Store(small_disk / "store")
    package = install(store)

    with pytest.raises(NoRoomError, match=r"No space left on device") as refused:
        install(store, {"model.onnx": b"0" * (2 << 20)}, repository="org/large")

    assert refused.value.got is not None
    assert list((store.root / "staging").iterdir()) == []
    assert store.packages() == [package]
    assert store.verify(package) == ()
    assert store.verify(install(store, {"model.onnx": b"small"}, repository="org/small")) == ()


def test_a_disk_that_fills_up_while_downloading_keeps_what_came(small_disk: Path) -> None:
    store = Store(small_disk / "store")

    def download() -> None:
        with store.partial("ab" * 32) as path:
            path.write_bytes(b"0" * (2 << 20))

    with pytest.raises(NoRoomError):
        download()
    with store.partial("ab" * 32) as path:
        assert path.stat().st_size > 500_000


def test_a_disk_that_is_full_when_the_package_is_committed(
    small_disk: Path, install: Install, describe: Describe
) -> None:
    store = Store(small_disk / "store")
    package = install(store)
    filler = small_disk / "filler"
    files = {"model.onnx": b"1", "golden/record.json": b"2"}
    manifest = describe(files, repository="org/second")
    with store.staging() as staging:
        for path, data in files.items():
            (staging.folder / path).parent.mkdir(exist_ok=True)
            (staging.folder / path).write_bytes(data)
        with suppress(OSError), filler.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"0" * 4096)
        with pytest.raises(NoRoomError, match="needs 2 bytes"):
            store.commit(staging, manifest, InstallRecord(installed_at=package.record.installed_at, axon="0.1"))

    assert list((store.root / "staging").iterdir()) == []
    assert store.packages() == [package]
    assert store.verify(package) == ()
    assert store.gc().files == 0, "something of the failed commit was left"
    filler.unlink()
    assert store.verify(install(store, files, repository="org/second")) == ()


def _error_in_child(work: Callable[[], None]) -> str:
    """The code of the error that ``work`` raises in a process of its own; ``none`` if it raises none."""
    heard, said = os.pipe()
    child = os.fork()
    if child == 0:
        code = "another"
        try:
            work()
            code = "none"
        except MlosError as error:
            code = error.code
        finally:
            os.write(said, code.encode())
            os._exit(0)
    os.close(said)
    with os.fdopen(heard) as stream:
        code = stream.read()
    os.waitpid(child, 0)
    return code


def test_a_file_size_limit_is_a_lack_of_room(store: Store, install: Install) -> None:
    package = install(store)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        install(store, {"model.onnx": b"0" * 100_000}, repository="org/large")

    assert _error_in_child(limited) == NoRoomError.code
    assert list((store.root / "staging").iterdir()) == []
    assert store.packages() == [package]
    assert store.verify(package) == ()


def test_too_many_open_files_are_said_to_be_that(store: Store, install: Install) -> None:
    package = install(store)

    def limited() -> None:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, lowest_free))
        with store.staging():
            pass

    assert _error_in_child(limited) == UnavailableError.code
    assert store.packages() == [package]


def test_a_read_only_store_can_be_read_and_leased(small_disk: Path, install: Install) -> None:
    store = Store(small_disk / "store")
    removed = install(store, {"model.onnx": b"1"}, repository="org/removed", minute=1)
    store.remove("org/removed")
    package = install(store)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    assert store.packages() == [package]
    assert store.find("bert") == package
    assert store.verify(package) == ()
    assert store.generation() > 0
    assert store.gc(dry_run=True).files == 2
    with store.lease(package):
        pass

    for change in (
        lambda: install(store, repository="org/new"),
        lambda: store.remove("bert"),
        lambda: store.gc(),
        lambda: store.partial("ab" * 32).__enter__(),
    ):
        with pytest.raises(RefusedError, match="Read-only file system") as refused:
            change()
        assert "MLOS_HOME" in str(refused.value.hint)
    assert store.packages() == [package]
    assert store.verify(removed) == ()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the mounted read-only disk covers it")
def test_a_folder_without_the_right_to_write_is_refused(store: Store, install: Install) -> None:
    package = install(store)
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert store.packages() == [package]
        with store.lease(package):
            assert store.verify(package) == ()
        with pytest.raises(RefusedError, match="cannot be changed"):
            install(store, repository="org/new")
    finally:
        for folder in folders:
            folder.chmod(0o755)
