"""Locks whose file may be deleted by their holder."""

from __future__ import annotations

import threading
from pathlib import Path

from mlos.store.locks import if_free, locked


def test_waiting_for_a_lock_file_that_is_deleted_ends_in_holding_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside, leave = threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with locked(path):
            inside.set()
            leave.wait(60)

    waiter = threading.Thread(target=wait_for_it)
    with locked(path):
        waiter.start()
        # Nothing tells when the thread waits; a thread that comes later makes this test easier, never wrong.
        assert not inside.wait(0.05)
        path.unlink()
    assert inside.wait(60)
    with if_free(path) as free:
        assert not free, "two hold the lock at once"
    leave.set()
    waiter.join()
    with if_free(path) as free:
        assert free


def test_shared_holders_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path, shared=True):
        with locked(path, shared=True), if_free(path) as free:
            assert not free
        with if_free(path) as free:
            assert not free
    with if_free(path) as free, if_free(path) as again:
        assert (free, again) == (True, False)
