"""Processes that are killed at any moment, or work at the same time, leave a sound store (F05, F08)."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlos.store import Collected, Package, Store

Install = Callable[..., Package]
FIRST = {"model.onnx": b"shared", "own": b"1"}
SECOND = {"model.onnx": b"shared", "golden/record.json": b"2", "copy": b"2"}

_FILE_SYSTEM = ("open", "os.", "fcntl.", "shutil.")

strides = pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
"""A kill before every third step, and before each of them in `make test-slow`."""


def fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a process of its own, which ends with status 1 if it raises; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except Exception as error:  # the parent sees the status, the reader of the test's output the error
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def exit_status(child: int) -> int:
    """The exit status of a process, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_before(step: int, work: Callable[[], None]) -> bool:
    """Run ``work`` in a process killed just before its ``step``-th use of the file system; was it?"""

    def counted() -> None:
        count = 0

        def hook(event: str, _: object) -> None:
            nonlocal count
            if event.startswith(_FILE_SYSTEM):
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()

    status = exit_status(fork(counted))
    assert status in (0, -signal.SIGKILL)
    return status != 0


def assert_sound(store: Store) -> list[Package]:
    """Every listed package is whole; nothing is listed that is not."""
    assert store.broken() == []
    packages = store.packages()
    for package in packages:
        assert store.verify(package) == ()
    return packages


def assert_reclaimed(store: Store) -> None:
    """The next install finds nothing of the dead: only its own staging folder and lock."""
    with store.staging() as staging:
        left = {path.name.removesuffix(".lock") for path in (store.root / "staging").iterdir()}
        assert left == {staging.folder.parent.name}
    assert list((store.root / "staging").iterdir()) == []


def contents(store: Store) -> set[str]:
    return {path.relative_to(store.root).as_posix() for path in store.root.rglob("*")}


@strides
def test_a_kill_before_any_step_of_an_install_leaves_all_or_nothing(
    store: Store, install: Install, stride: int
) -> None:
    first = install(store, FIRST, repository="org/first")
    before = contents(store)
    step, seen = 1, set()
    while killed_before(step, lambda: _ignore(install(store, SECOND, repository="org/second", minute=1))):
        packages = assert_sound(store)
        assert {item.reference for item in packages} >= {first.reference}
        seen.add(len(packages))
        assert_reclaimed(store)
        assert store.verify(install(store, SECOND, repository="org/second", minute=2)) == ()
        store.remove("org/second")
        store.gc()
        assert contents(store) == before
        step += stride

    assert seen == {1, 2}, "the kills missed the moments before or after the package became visible"
    assert step > 50
    assert len(assert_sound(store)) == 2


@strides
def test_a_kill_before_any_step_of_a_repair_is_healed_by_the_next(
    store: Store, install: Install, stride: int
) -> None:
    package = install(store, SECOND, repository="org/second")
    other = install(store, FIRST, repository="org/first")

    def damage() -> None:
        for path in ("model.onnx", "golden/record.json"):
            target = package.path(path)
            if target.exists():
                target.chmod(0o644)
                target.write_bytes(b"rotten")
        (package.folder / "added").write_text("x")

    step = 1
    damage()
    while killed_before(step, lambda: _ignore(install(store, SECOND, repository="org/second"))):
        assert store.broken() == []
        assert store.verify(install(store, SECOND, repository="org/second")) == ()
        assert store.verify(other) == ()
        damage()
        step += stride
    assert step > 50
    assert len(assert_sound(store)) == 2


def test_a_kill_before_any_step_of_a_collection_loses_nothing_needed(store: Store, install: Install) -> None:
    first = install(store, FIRST, repository="org/first")
    before = contents(store)

    def remove_and_collect() -> None:
        store.remove("org/second")
        store.gc()

    step = 1
    install(store, SECOND, repository="org/second")
    while killed_before(step, remove_and_collect):
        packages = assert_sound(store)
        assert {item.digest for item in packages} >= {first.digest}
        store.gc()
        if len(packages) == 1:
            assert contents(store) == before
        assert store.verify(install(store, SECOND, repository="org/second")) == ()
        step += 1
    assert step > 20
    assert contents(store) == before


def test_forty_kills_at_random_moments(store: Store, install: Install) -> None:
    chance = random.Random(5)

    def commit_for_ever(ready: int) -> None:
        number = 0
        while True:
            number += 1
            install(store, SECOND | {"n": b"%d" % number}, commit=f"c{number % 3}", minute=number % 50)
            os.write(ready, b".")

    for _ in range(40):
        heard, ready = os.pipe()
        child = fork(lambda ready=ready: commit_for_ever(ready))  # type: ignore[misc]  # a default is no parameter here
        os.close(ready)
        assert os.read(heard, 1) == b"."
        time.sleep(chance.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) == -signal.SIGKILL
        os.close(heard)

        assert 1 <= len(assert_sound(store)) <= 3
        assert_reclaimed(store)
    assert store.verify(install(store, FIRST, repository="org/next")) == ()
    store.gc()
    assert_sound(store)
    assert store.gc() == Collected(0, 0)


def test_a_partial_download_survives_a_kill_and_its_lock_does_not(store: Store) -> None:
    def download() -> None:
        with store.partial("ab" * 32) as path:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert exit_status(fork(download)) == -signal.SIGKILL
    with store.partial("ab" * 32) as path:
        assert path.read_bytes() == b"half"
        path.unlink()
    assert list((store.root / "partial").iterdir()) == []


def test_eight_processes_install_the_same_package(store: Store, install: Install) -> None:
    heard, ready = os.pipe()

    def work() -> None:
        os.close(ready)
        os.read(heard, 1)  # returns when the parent closes its end
        assert store.verify(install(store, SECOND)) == ()

    children = [fork(work) for _ in range(8)]
    os.close(ready)
    os.close(heard)
    assert [exit_status(child) for child in children] == [0] * 8

    (package,) = assert_sound(store)
    blobs = list((store.root / "blobs" / "sha256").iterdir())
    assert len(blobs) == 3
    inodes = {blob.stat().st_ino for blob in blobs}
    assert all(path.stat().st_ino in inodes for path in package.folder.rglob("*") if path.is_file())
    assert list((store.root / "staging").iterdir()) == []
    assert store.gc() == Collected(0, 0)


def test_installs_removals_leases_and_collections_at_once(store: Store, install: Install) -> None:
    keeper = install(store, {"model.onnx": b"shared"}, repository="org/keeper")

    def churn(number: int) -> None:
        for _ in range(12):
            package = install(store, SECOND | {"n": b"%d" % (number // 2)}, repository=f"org/m{number}")
            with store.lease(package):
                store.remove(package.digest)
                assert store.verify(package) == ()

    def collect() -> None:
        for _ in range(60):
            store.gc()
            store.packages()

    children = [fork(lambda number=number: churn(number)) for number in range(4)]  # type: ignore[misc]  # as above
    children += [fork(collect), fork(collect)]
    assert [exit_status(child) for child in children] == [0] * 6

    assert [item.digest for item in assert_sound(store)] == [keeper.digest]
    store.gc()
    assert len(list((store.root / "blobs" / "sha256").iterdir())) == 2


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_lease_of_another_process_holds_until_it_dies(store: Store, install: Install, dry_run: bool) -> None:
    package = install(store)
    heard, ready = os.pipe()

    def serve() -> None:
        with store.lease(package):
            os.write(ready, b".")
            time.sleep(600)

    server = fork(serve)
    assert os.read(heard, 1) == b"."
    store.remove("bert")
    assert store.gc(dry_run) == Collected(0, 0)
    assert store.verify(package) == ()

    os.kill(server, signal.SIGKILL)
    assert exit_status(server) == -signal.SIGKILL
    assert store.gc(dry_run).files == 4
    assert package.folder.exists() is dry_run
    os.close(heard)
    os.close(ready)


def _ignore(_: Package) -> None:
    """The type of what a forked process runs."""


def test_a_package_folder_is_never_seen_half(store: Store, install: Install) -> None:
    """A reader that watches all the time sees whole packages only."""
    install(store, FIRST, repository="org/first")
    heard, ready = os.pipe()

    def watch() -> None:
        os.set_blocking(heard, False)
        while True:
            assert_sound_or_removed(store)
            try:
                os.read(heard, 1)
            except BlockingIOError:
                continue
            return

    watcher = fork(watch)
    for number in range(25):
        install(store, SECOND, repository="org/second", minute=number)
        store.remove("org/second")
        store.gc()
    os.write(ready, b".")
    assert exit_status(watcher) == 0
    os.close(heard)
    os.close(ready)


def assert_sound_or_removed(store: Store) -> None:
    assert store.broken() == []
    for package in store.packages():
        faults = store.verify(package)
        assert not faults or Path(package.folder).exists() is False or package not in store.packages()
