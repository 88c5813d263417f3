"""What an engine made of a file is kept whole, found only by whom it suits, and never believed unseen."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.engines.onnx_graphs import PRODUCT, WIDE, product_graph

from mlos.engines import kept, open_model
from mlos.engines.kept import KeptForm
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import CorruptError

X = np.random.default_rng(1).normal(size=(3, WIDE)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A product with a matrix large enough to be packed."""
    folder = tmp_path / "package"
    folder.mkdir()
    onnx.save(product_graph(), folder / "model.onnx")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    return cache


def opened_file(engine: object) -> Path:
    """The file that ONNX Runtime opened, by its own account."""
    assert isinstance(engine, OnnxRuntimeEngine)
    return Path(engine._session._model_path)


def form_in(cache: Path) -> KeptForm:
    (found,) = cache.iterdir()
    return KeptForm(found)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def write(folder: Path) -> None:
    folder.joinpath("one").write_bytes(b"1" * 5000)
    folder.joinpath("empty").write_bytes(b"")


def test_a_form_is_whole_or_not_there(folder: Path, cache: Path) -> None:
    form = KeptForm.of(folder / "model.onnx", cache, "library 1")
    assert not form.present

    def half(passing: Path) -> None:
        write(passing)
        passing.joinpath("another").rmdir()

    assert not form.make(half)
    assert not list(cache.iterdir())
    assert form.make(write)
    assert list(cache.iterdir()) == [form.folder]
    with form.verified():
        assert form.folder.joinpath("one").read_bytes() == b"1" * 5000


def test_what_two_make_at_once_is_there_once(folder: Path, cache: Path) -> None:
    form = KeptForm.of(folder / "model.onnx", cache)

    def both(passing: Path) -> None:
        write(passing)
        assert form.make(write)

    assert form.make(both)
    assert list(cache.iterdir()) == [form.folder]
    with form.verified():
        pass


def test_it_is_found_by_nobody_whom_it_does_not_suit(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "model.onnx"
    same = KeptForm.of(path, cache, "library 1", {"threads": 1})
    assert KeptForm.of(path, cache, "library 1", {"threads": 1}) == same
    others = [KeptForm.of(path, cache, "library 2", {"threads": 1}), KeptForm.of(path, cache, "library 1", {})]
    monkeypatch.setattr(kept, "_processor", lambda: "fpu sse2 amx_tile")
    others.append(KeptForm.of(path, cache, "library 1", {"threads": 1}))
    monkeypatch.undo()
    path.write_bytes(path.read_bytes())
    others.append(KeptForm.of(path, cache, "library 1", {"threads": 1}))
    assert len({same, *others}) == 5


@pytest.mark.parametrize("name", ["one", "checksums.json"])
def test_a_changed_byte_is_found(folder: Path, cache: Path, name: str) -> None:
    form = KeptForm.of(folder / "model.onnx", cache)
    form.make(write)
    damage(form.folder / name)
    with pytest.raises(CorruptError), form.verified():
        pass


def test_what_cannot_be_opened_and_has_changed_is_told_by_the_change(folder: Path, cache: Path) -> None:
    form = KeptForm.of(folder / "model.onnx", cache)
    form.make(write)
    damage(form.folder / "one")
    with pytest.raises(CorruptError, match="one of a kept form"), form.verified():
        raise KeyError("as a library may that reads it")


def test_a_file_that_is_shorter_is_not_opened(folder: Path, cache: Path) -> None:
    form = KeptForm.of(folder / "model.onnx", cache)
    form.make(write)
    form.folder.joinpath("one").write_bytes(b"1" * 4999)
    with pytest.raises(CorruptError) as caught, form.verified():
        pytest.fail("mapping it would end the process")
    assert (caught.value.expected, caught.value.got) == ("5000 bytes", "4999 bytes")
    form.folder.joinpath("one").unlink()
    with pytest.raises(CorruptError, match="one"), form.verified():
        pytest.fail("there is nothing to open")


def test_onnx_runtime_opens_its_form_and_answers_alike(folder: Path, cache: Path) -> None:
    plain = open_model(folder, PRODUCT, 1)
    made = open_model(folder, PRODUCT, 1, cache=cache)
    found = open_model(folder, PRODUCT, 2, cache=cache)
    assert opened_file(plain) == folder / "model.onnx"
    assert opened_file(made).parent == opened_file(found).parent == form_in(cache).folder
    # Packed weights are there beside the others: the matrix has 16 kB.
    assert form_in(cache).folder.joinpath("weights").stat().st_size > 2 * WIDE * 8 * 4
    for engine in (made, found):
        np.testing.assert_array_equal(engine.run({"x": X})["y"], plain.run({"x": X})["y"])


def test_it_is_found_where_nothing_can_be_written(folder: Path, cache: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    open_model(folder, PRODUCT, 1, cache=cache)
    program = f"""
from pathlib import Path
from mlos.host.sandbox import Policy, confine
from tests.engines.onnx_graphs import PRODUCT
from tests.engines.test_kept import X, opened_file
from mlos.engines import open_model
folder, cache, empty = map(Path, {[str(folder), str(cache), str(empty)]!r})
confine(Policy(read=(folder, cache, empty)))
for place in (cache, empty):
    engine = open_model(folder, PRODUCT, 1, cache=place)
    print(opened_file(engine).is_relative_to(cache), engine.run({{"x": X}})["y"].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True (3, 8)", "False (3, 8)"]
    assert not list(empty.iterdir())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_damaged_form_is_told_of_and_made_again(
    folder: Path, cache: Path, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer() -> list[float]:
        opened = open_model(folder, PRODUCT, 1, engine=engine, cache=cache)
        found: list[float] = opened.run({"x": X})["y"].tolist()
        return found

    first = answer()
    (largest,) = sorted(form_in(cache).folder.iterdir(), key=lambda file: file.stat().st_size)[-1:]
    damage(largest)
    with caplog.at_level(logging.WARNING):
        assert answer() == first
    assert f"{largest.name} of a kept form is not as it was written" in caplog.text
    assert len(caplog.records) == 1
    caplog.clear()
    assert answer() == answer() == first
    with form_in(cache).verified():
        pass
    assert not caplog.records


def test_a_file_that_cannot_be_kept_is_opened_as_it_is(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The library refuses to write where its data would lie outside: as good as a full disk.
    monkeypatch.setattr("mlos.engines.onnxruntime._WEIGHTS", "no/such/folder/weights")
    opened = open_model(folder, PRODUCT, 1, cache=cache)
    assert opened_file(opened) == folder / "model.onnx"
    assert "opened without its kept form" in caplog.text
    assert not list(cache.iterdir())
