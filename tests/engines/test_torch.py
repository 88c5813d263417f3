"""torch's engine: a program as conversion writes it, any lengths, only the outputs that are asked for."""

from __future__ import annotations

import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mlos.axon.convert.pt2_export import to_pt2
from mlos.engines import engine_for, library_bytes, open_model
from mlos.engines import torch as engine_module
from mlos.engines.torch import TorchEngine
from mlos.errors import InvalidInputError, MissingExtraError, MlosError, RefusedError
from mlos.model import Artifact

AXES = {0: "batch", 1: "sequence"}
VOCABULARY, POSITIONS = 50, 16


class Reader(torch.nn.Module):
    """Looks tokens and positions up, and doubles the tokens, which needs no weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.tokens = torch.nn.Embedding(VOCABULARY, 8)
        self.positions = torch.nn.Embedding(POSITIONS, 8)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (tokens,) = tensors
        places = torch.arange(tokens.shape[1])
        return self.tokens(tokens) + self.positions(places), tokens * 2


def written(folder: Path, axes: dict[int, str] = AXES, module: torch.nn.Module | None = None) -> Artifact:
    """The program of ``module``, by default a reader's, in the new folder ``folder``."""
    folder.mkdir(exist_ok=True)
    return to_pt2(
        module or Reader(),
        {"tokens": torch.ones(2, 5, dtype=torch.int64)},
        ("vectors", "doubled"),
        dict.fromkeys(("tokens", "vectors", "doubled"), axes),
        folder,
    ).artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    folder = tmp_path_factory.mktemp("program")
    return folder, written(folder)


@pytest.fixture
def engine(artifact: tuple[Path, Artifact]) -> TorchEngine:
    return TorchEngine.open(*artifact, threads=1)


def tokens(rows: int, length: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length))


def test_it_is_the_engine_for_programs_and_says_what_its_library_takes(artifact: tuple[Path, Artifact]) -> None:
    folder, program = artifact
    assert engine_for(program) is TorchEngine
    assert isinstance(open_model(folder, program, 1), TorchEngine)
    assert library_bytes(program) == library_bytes(program, "torch") > 100 << 20
    assert library_bytes(program.model_copy(update={"format": "onnx"})) == 0
    assert library_bytes(program, "stranger") == 0


def test_the_artifact_names_the_free_axes(artifact: tuple[Path, Artifact]) -> None:
    _, program = artifact
    assert (program.format, program.precision, program.path) == ("pt2", "fp32", "model.pt2")
    assert [(spec.name, spec.dtype, spec.shape) for spec in (*program.inputs, *program.outputs)] == [
        ("tokens", "INT64", ("batch", "sequence")),
        ("vectors", "FP32", ("batch", "sequence", 8)),
        ("doubled", "INT64", ("batch", "sequence")),
    ]


@pytest.mark.parametrize(("rows", "length"), [(2, 5), (1, 1), (3, 7), (1, POSITIONS)])
def test_any_lengths_are_answered_as_the_framework_answers(engine: TorchEngine, rows: int, length: int) -> None:
    asked = tokens(rows, length)
    answer = engine.run({"tokens": asked})
    with torch.no_grad():
        vectors, doubled = Reader()(torch.from_numpy(asked))
    assert np.array_equal(answer["vectors"], vectors.numpy())
    assert np.array_equal(answer["doubled"], doubled.numpy())


def test_what_no_output_asked_for_needs_is_not_computed(engine: TorchEngine) -> None:
    strangers = np.full((1, 3), VOCABULARY)  # which cannot be looked up, and can be doubled
    answer = engine.run({"tokens": strangers}, ["doubled"])
    assert answer["doubled"].tolist() == [[2 * VOCABULARY] * 3]
    assert list(answer) == ["doubled"]
    assert list(engine.run({"tokens": tokens(1, 2)}, ["doubled", "vectors"])) == ["doubled", "vectors"]
    with pytest.raises(InvalidInputError, match="cannot take these tensors: index out of range"):
        engine.run({"tokens": strangers}, ["vectors"])


def test_a_text_beyond_the_positions_is_the_request_s_fault(engine: TorchEngine) -> None:
    with pytest.raises(InvalidInputError, match="cannot take"):
        engine.run({"tokens": tokens(1, POSITIONS + 1)})


def test_lengths_at_which_the_model_goes_another_way_are_refused(tmp_path: Path) -> None:
    class Forked(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            (given,) = tensors
            return given * 2 if given.shape[1] < 8 else given * 3, given

    engine = TorchEngine.open(tmp_path, written(tmp_path, module=Forked()), 1)
    assert np.array_equal(engine.run({"tokens": tokens(1, 7)})["vectors"], 2 * tokens(1, 7))
    with pytest.raises(InvalidInputError, match="cannot take a length of 8 along axis 1") as caught:
        engine.run({"tokens": tokens(1, 8)}, ["doubled"])
    assert (caught.value.field, caught.value.expected, caught.value.got) == ("inputs.tokens", "0 to 7", "8")


def test_no_run_changes_its_inputs_or_gives_its_weights_away(tmp_path: Path) -> None:
    class Careless(torch.nn.Module):
        table: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(4.0))
            self.register_buffer("table", torch.arange(4.0))
            self.constant = torch.arange(4.0)

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tensors[0].add_(1), self.weight, self.table[1:], self.constant

    inputs = {"tokens": torch.ones(2, 5, dtype=torch.int64)}
    free = dict.fromkeys(("tokens", "more"), AXES)
    artifact = to_pt2(Careless(), inputs, ("more", "weight", "table", "constant"), free, tmp_path).artifact
    engine, asked = TorchEngine.open(tmp_path, artifact, 1), tokens(2, 3)
    kept = asked.copy()
    first = engine.run({"tokens": asked})
    assert np.array_equal(asked, kept)
    assert np.array_equal(first["more"], kept + 1)
    for answer in first.values():
        answer[:] = 99
    again = engine.run({"tokens": asked})
    assert (again["weight"].tolist(), again["table"].tolist()) == ([0, 1, 2, 3], [1, 2, 3])
    assert again["constant"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(engine.run({"tokens": asked}, ["more"])["more"], kept + 1)


def test_however_many_sets_of_outputs_are_asked_for_few_programs_are_kept(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "_MOST_PROGRAMS", 1)
    asked = {"tokens": tokens(1, 3)}
    for wanted in (["doubled"], ["vectors"], ["vectors", "doubled"], ["doubled", "vectors"], []):
        assert list(engine.run(asked, wanted)) == wanted
    assert len(engine._programs) == 2  # and the whole


def test_arrays_that_cannot_be_written_to_or_lie_scattered_are_taken(engine: TorchEngine) -> None:
    asked = tokens(2, 5)
    expected = engine.run({"tokens": asked})["vectors"]
    scattered = np.asfortranarray(asked)
    assert np.array_equal(engine.run({"tokens": scattered})["vectors"], expected)
    asked.flags.writeable = False
    assert np.array_equal(engine.run({"tokens": asked})["vectors"], expected)


def test_runs_of_several_threads_do_not_mix(engine: TorchEngine) -> None:
    asked = [tokens(1 + number % 3, 1 + number % POSITIONS, number) for number in range(60)]
    expected = [engine.run({"tokens": each}) for each in asked]
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda each: engine.run({"tokens": each}), asked))
    for answer, right in zip(answers, expected, strict=True):
        assert np.array_equal(answer["vectors"], right["vectors"])


def test_each_engine_computes_with_its_own_threads(artifact: tuple[Path, Artifact]) -> None:
    known = torch.get_num_threads()
    try:
        for threads in (2, 1):
            TorchEngine.open(*artifact, threads=threads).run({"tokens": tokens(1, 2)})
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(known)


def test_the_same_model_is_the_same_bytes_and_says_nothing_of_the_machine(tmp_path: Path) -> None:
    for name in "ab":
        written(tmp_path / name)
    files = [tmp_path / name / "model.pt2" for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    with zipfile.ZipFile(files[0]) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    for remark in (b"site-packages", b".py", str(tmp_path).encode(), b"Reader"):
        assert remark not in content


def test_what_cannot_be_exported_as_it_should_is_refused(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[0].reshape(2, 5), tensors[0]

    with pytest.raises(RefusedError, match=r"torch\.export cannot export this model"):
        written(tmp_path / "fixed", module=Fixed())

    class Half(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tensors[0].to(torch.bfloat16), tensors[0]

    with pytest.raises(MlosError, match="bfloat16"):
        written(tmp_path / "half", module=Half())
    with pytest.raises(MlosError, match="other free axes than it was to have"):
        to_pt2(
            Reader(),
            {"tokens": torch.ones(2, 5, dtype=torch.int64)},
            ("vectors", "doubled"),
            {"tokens": AXES, "vectors": {0: "batch"}, "doubled": AXES},
            tmp_path,
        )


def damaged(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_weights_alone(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


@pytest.mark.parametrize("damage", [damaged, emptied, of_weights_alone])
def test_a_file_that_is_no_program_is_refused(tmp_path: Path, damage: Any) -> None:
    artifact = written(tmp_path)
    damage(tmp_path / "model.pt2")
    with pytest.raises(RefusedError, match=r"torch cannot load model\.pt2"):
        TorchEngine.open(tmp_path, artifact, 1)


def test_a_program_of_other_tensors_than_declared_is_refused(artifact: tuple[Path, Artifact]) -> None:
    folder, program = artifact
    other = program.outputs[0].model_copy(update={"name": "stranger"})
    with pytest.raises(RefusedError, match="gives other tensors than its manifest declares"):
        TorchEngine.open(folder, program.model_copy(update={"outputs": (other, program.outputs[1])}), 1)


def test_without_torch_the_error_names_the_extra(
    artifact: tuple[Path, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    engine_module._torch.cache_clear()
    try:
        with pytest.raises(MissingExtraError) as caught:
            TorchEngine.open(*artifact, 1)
    finally:
        engine_module._torch.cache_clear()
    assert caught.value.hint == "pip install 'mlos[torch]'"
