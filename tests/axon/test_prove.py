"""The gate between a conversion and a package: the right model passes, every mutation of it fails.

A validator is tested by mutation: what a conversion could get wrong is done to a converted model on purpose.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.small import Small

from mlos.axon.convert import Converted
from mlos.axon.prove import prove
from mlos.console import Console
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import CorruptError, ParityError, RefusedError, UsageError
from mlos.model import FileEntry, Manifest, ParityMeasure
from mlos.parity import GoldenRecord, compare_outputs, require, tolerance_named


@dataclass
class Candidate:
    """A converted model that a test may damage, and what its manifest would say."""

    folder: Path
    converted: Converted
    console: Console
    tolerance: str = "fp32"

    def draft(self, **changed: Any) -> Manifest:
        return Manifest(
            name="bert",
            reference="seeded/tiny/bert@0",
            commit="0",
            weights="seeded",
            source_format="safetensors",
            artifact=self.converted.artifact,
            files=tuple(self._entry(path) for path, _ in self.converted.files),
            **{
                "tasks": self.converted.tasks,
                "preprocessing": self.converted.preprocessing,
                "golden": "golden",
                **changed,
            },
        )

    def prove(self, **changed: Any) -> tuple[ParityMeasure, ...]:
        return prove(self.folder, self.draft(**changed), self.tolerance, self.console)

    def _entry(self, path: str) -> FileEntry:
        data = (self.folder / path).read_bytes()
        return FileEntry(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), role="weights")


@pytest.fixture(scope="session")
def converted(small: Small) -> tuple[Path, Converted]:
    return small.converted("bert")


@pytest.fixture
def candidate(converted: tuple[Path, Converted], tmp_path: Path, console: Console) -> Candidate:
    folder, made = converted
    shutil.copytree(folder, tmp_path / "candidate")
    return Candidate(tmp_path / "candidate", made, console)


def test_the_converted_model_passes(candidate: Candidate) -> None:
    measures = candidate.prove()
    assert [measure.output for measure in measures] == ["logits", "last_hidden_state"]
    for measure in measures:
        assert measure.passed
        assert measure.tolerance == "fp32"
        assert 0 < measure.max_abs_error < 1e-4
        assert measure.cosine > 0.9999
    assert measures[0].argmax_agreement == 1
    Manifest.parse(candidate.draft(parity=measures).canonical(), "the package")


def test_nothing_is_written_beside_the_model(candidate: Candidate) -> None:
    before = sorted(candidate.folder.rglob("*"))
    candidate.prove()
    assert sorted(candidate.folder.rglob("*")) == before


def test_a_model_no_framework_answers_for_has_no_measures(candidate: Candidate) -> None:
    assert candidate.prove(golden=None) == ()


def weights_of_layers(candidate: Candidate) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """The model's graph, and the matrices of both encoder layers in their order, the decoder's apart."""
    model = onnx.load(candidate.folder / "model.onnx", load_external_data=False)
    matrices = [
        tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 2 and tensor.name.startswith("val_") and tensor.external_data
    ]
    assert len(matrices) == 13  # six to a layer, and the head's own
    return model, matrices[:12]


def offset_of(tensor: onnx.TensorProto) -> int:
    return int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))


@pytest.mark.parametrize("matrix", [0, 4, 11])
def test_a_flipped_weight_bit_fails(candidate: Candidate, matrix: int) -> None:
    _, matrices = weights_of_layers(candidate)
    data = candidate.folder / "model.onnx.data"
    content = bytearray(data.read_bytes())
    # The highest exponent bit of a number below 2, in little-endian order: it grows by a factor of 2^128.
    content[offset_of(matrices[matrix]) + 3] ^= 0x40
    data.write_bytes(content)
    with pytest.raises(ParityError, match=r"parity failed: (logits|last_hidden_state|output)"):
        candidate.prove()


def test_a_flipped_bit_that_only_doubles_one_weight_fails(candidate: Candidate) -> None:
    """The gentlest flip of an exponent: the error stays far from NaN and is printed beside its tolerance."""
    _, matrices = weights_of_layers(candidate)
    data = candidate.folder / "model.onnx.data"
    numbers = np.frombuffer(data.read_bytes(), dtype=np.uint32).copy()
    numbers[offset_of(matrices[0]) // 4 + 7] ^= 1 << 23
    data.write_bytes(numbers.tobytes())
    with pytest.raises(ParityError, match=r"max \|error\| [0-9.e-]+ against tolerance atol 0.0001, rtol 0.001"):
        candidate.prove()


def test_swapped_layers_fail(candidate: Candidate) -> None:
    model, matrices = weights_of_layers(candidate)
    for first, second in zip(matrices[:6], matrices[6:], strict=True):
        assert first.dims == second.dims
        kept = onnx.TensorProto()
        kept.CopyFrom(first)
        for target, source in ((first, second), (second, kept)):
            del target.external_data[:]
            target.external_data.extend(source.external_data)
    onnx.save(model, candidate.folder / "model.onnx")
    with pytest.raises(ParityError, match="parity failed: logits: max"):
        candidate.prove()


def change_tokenizer(candidate: Candidate, change: Callable[[dict[str, Any]], object]) -> None:
    path = candidate.folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def swap_words(content: dict[str, Any]) -> None:
    words = content["model"]["vocab"]
    words["cat"], words["mat"] = words["mat"], words["cat"]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["normalizer"].update(lowercase=False),
        lambda content: content["model"].update(continuing_subword_prefix="@@"),
        lambda content: content.update(post_processor=None),
        swap_words,
    ],
    ids=["case kept", "other pieces", "no special tokens", "two words swapped"],
)
def test_a_wrong_tokenizer_fails_and_says_where(
    candidate: Candidate, change: Callable[[dict[str, Any]], object]
) -> None:
    change_tokenizer(candidate, change)
    with pytest.raises(
        ParityError, match=r"wrong tokenizer: case '[\w-]+': \w+ differ.*expected .*, got"
    ) as caught:
        candidate.prove()
    assert caught.value.expected
    assert caught.value.got


def test_wrong_normalisation_fails(candidate: Candidate) -> None:
    preprocessing = candidate.converted.preprocessing
    wrong = {**preprocessing, "embeddings": {**preprocessing["embeddings"], "normalize": True}}
    with pytest.raises(ParityError, match=r"wrong result: case '[\w-]+': result\.embedding\[\d+\] differs"):
        candidate.prove(preprocessing=wrong)


def test_another_task_than_the_frameworks_fails(candidate: Candidate) -> None:
    with pytest.raises(
        ParityError, match=r"wrong task: .* answered by embeddings, the framework answered fill-mask"
    ):
        candidate.prove(tasks=("embeddings", "fill-mask"))


def test_a_degenerate_model_is_vacuous_although_nothing_differs(candidate: Candidate) -> None:
    """All weights zero, and a golden record made with them: no error at all, and no proof either."""
    data = candidate.folder / "model.onnx.data"
    model, _ = weights_of_layers(candidate)
    kept = next(one for one in model.graph.initializer if one.name.endswith("position_ids"))
    start, length = offset_of(kept), 8 * 512
    content = data.read_bytes()
    data.write_bytes(bytes(start) + content[start : start + length] + bytes(len(content) - start - length))
    golden = GoldenRecord.load(candidate.folder / "golden")
    engine = OnnxRuntimeEngine.open(candidate.folder, candidate.converted.artifact, threads=1)
    same = GoldenRecord(
        tuple(replace(case, outputs=engine.run(case.inputs)) for case in golden.cases), golden.framework
    )
    same.save(candidate.folder / "golden")
    answers = {case.name: case.outputs for case in same.cases}
    require(compare_outputs(same, answers, tolerance_named("fp32")))
    with pytest.raises(ParityError, match=r"vacuous: logits: .* could not have failed"):
        candidate.prove()


def test_a_damaged_golden_record_is_named(candidate: Candidate) -> None:
    (candidate.folder / "golden" / "tensors.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CorruptError, match=r"tensors\.npz"):
        candidate.prove()


def test_a_model_the_engine_refuses_fails(candidate: Candidate) -> None:
    (candidate.folder / "model.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(RefusedError, match=r"model\.onnx"):
        candidate.prove()


def test_the_child_reads_nothing_outside_the_folder(candidate: Candidate, tmp_path: Path) -> None:
    shutil.move(candidate.folder / "tokenizer.json", tmp_path / "tokenizer.json")
    (candidate.folder / "tokenizer.json").symlink_to(tmp_path / "tokenizer.json")
    with pytest.raises(RefusedError, match=r"tokenizer\.json: .*[Pp]ermission denied"):
        candidate.prove()


def test_an_unknown_tolerance_is_named(candidate: Candidate) -> None:
    candidate.tolerance = "int3"
    with pytest.raises(UsageError, match="'int3'"):
        candidate.prove()
