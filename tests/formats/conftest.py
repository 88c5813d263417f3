"""Files to verify, what a refusal must say, and mutations that no file may crash the verifier with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st

from mlos.errors import RefusedError
from mlos.formats import detect, verify

Refusal = Callable[[str, bytes], RefusedError]


def refusal_of(path: Path) -> RefusedError:
    """The refusal of a file: one line that names it, with what was wanted, what came and what to do."""
    with pytest.raises(RefusedError) as caught:
        verify(path)
    error = caught.value
    assert path.name in error.message
    assert error.message.isprintable()
    assert len(error.message) < 1000
    assert error.expected
    assert error.got
    assert error.hint
    assert error.exit_status == 4
    return error


@pytest.fixture(name="refusal_of")
def _refusal_of() -> Callable[[Path], RefusedError]:
    return refusal_of


@pytest.fixture
def refusal(tmp_path: Path) -> Refusal:
    """Write a file of the given name and bytes; how it is refused."""

    def write_and_refuse(name: str, data: bytes) -> RefusedError:
        (tmp_path / name).write_bytes(data)
        return refusal_of(tmp_path / name)

    return write_and_refuse


def mangle(draw: st.DataObject, whole: bytes) -> bytes:
    """``whole`` with a few bytes changed, removed, inserted or repeated, and perhaps cut off."""
    data = bytearray(whole)
    for _ in range(draw.draw(st.integers(1, 4))):
        at = draw.draw(st.integers(0, len(data)))
        match draw.draw(st.sampled_from(["flip", "set", "insert", "remove", "repeat", "number", "cut"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw.draw(st.integers(0, 7))
            case "set" if at < len(data):
                data[at] = draw.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x2C]))
            case "insert":
                data[at:at] = draw.draw(st.binary(min_size=1, max_size=12))
            case "remove":
                del data[at : at + draw.draw(st.integers(1, 16))]
            case "repeat":
                data[at:at] = data[at : at + draw.draw(st.integers(1, 64))]
            case "number":
                number = draw.draw(st.sampled_from([1 << 63, (1 << 64) - 1, 1 << 32, 1 << 31, 1 << 61]))
                data[at : at + 8] = number.to_bytes(8, "little")
            case "cut":
                del data[at:]
            case _:
                pass
    return bytes(data)


@pytest.fixture(scope="session")
def attack(tmp_path_factory: pytest.TempPathFactory) -> Callable[[st.DataObject, bytes, str], None]:
    """Mangle a sound file and verify it: it is either still sound or refused, nothing else."""
    folder = tmp_path_factory.mktemp("attack")

    def mangle_and_verify(draw: st.DataObject, whole: bytes, name: str) -> None:
        path = folder / name
        path.write_bytes(mangle(draw, whole))
        detect(path)
        with suppress(RefusedError):
            verify(path)

    return mangle_and_verify
