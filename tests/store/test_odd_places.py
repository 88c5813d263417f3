from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlos.errors import RefusedError
from mlos.store import Store


def test_a_store_below_a_plain_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    store = Store(tmp_path / "home" / "store")
    for read in (store.packages, store.generation):
        with pytest.raises(RefusedError, match="cannot be read") as refused:
            read()
        assert "MLOS_HOME" in str(refused.value.hint)


@pytest.mark.timeout(20)
def test_a_pipe_in_the_lock_s_place_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    Store(tmp_path).gc()
