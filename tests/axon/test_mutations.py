"""The gate is tested by mutation: one thing at a time is broken in a converted model, and it must fail.

What a conversion could get wrong besides weights (tokenizers, constants of normalisation, labels) is broken in
the tests of the families.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.small import Candidate, Small
from tests.tiny_llama import TinyLlama, tiny_llama

from mlos.axon import llama_cpp_source
from mlos.axon.prove_child import answer
from mlos.errors import ParityError
from mlos.model import Artifact
from mlos.parity import tolerance_of

Arrays = dict[str, NDArray[Any]]
_EXPONENT = 1 << 23
"""The lowest bit of the exponent of a number in single precision: it doubles, or is halved."""


@dataclass(frozen=True)
class Subject:
    """A graph of a small variant: where the number of a layer stands in names, and what its head is called."""

    model: str
    graph: str
    layers: str
    head: str | None

    def __str__(self) -> str:
        return f"{self.model} {self.graph}"


SUBJECTS = (
    Subject("bert", "model.onnx", r"encoder\.layer\.(\d)", r"cls\.predictions"),
    Subject("distilbert-sst2", "model.onnx", r"transformer\.layer\.(\d)", r"model\.classifier"),
    Subject("resnet", "model.onnx", r"stages\.0\.layers\.(\d)\.layer\.1", r"classifier"),
    Subject("t5", "encoder.onnx", r"block\.(\d)", None),
    Subject("t5", "decoder.onnx", r"block\.(\d)", r"lm_head"),
    Subject("bart", "encoder.onnx", r"encoder\.layers\.(\d)", None),
    Subject("bart", "decoder.onnx", r"decoder\.layers\.(\d)", None),  # whose head is the embeddings
    Subject("clip", "text.onnx", r"layers\.(\d)", None),
    Subject("clip", "image.onnx", r"layers\.(\d)", None),
    Subject("wav2vec2", "model.onnx", r"encoder\.layers\.(\d)", r"lm_head"),
    Subject("segformer", "model.onnx", r"stages\.\d\.blocks\.(\d)", r"decode_head\.classifier"),
    Subject("detr", "model.onnx", r"encoder\.layers\.(\d)", r"bbox_predictor"),
    Subject("detr", "model.onnx", r"decoder\.layers\.(\d)", r"class_labels_classifier"),
)
WITH_HEAD = [subject for subject in SUBJECTS if subject.head is not None]


def refused(candidate: Candidate, graph: str, changed: Arrays) -> None:
    assert changed
    candidate.change(graph, changed)
    with pytest.raises(ParityError):
        candidate.prove()


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_written_again_unchanged_it_passes(small: Small, tmp_path: Path, subject: Subject) -> None:
    """So that what fails below fails by what was broken, and not by how it was written."""
    candidate = small.candidate(subject.model, tmp_path / "candidate")
    candidate.change(subject.graph, {})
    assert all(measure.passed for measure in candidate.prove())


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
@pytest.mark.parametrize("depth", [0.0, 0.5], ids=["first", "middle"])
def test_one_flipped_bit_of_one_weight(small: Small, tmp_path: Path, subject: Subject, depth: float) -> None:
    candidate = small.candidate(subject.model, tmp_path / "candidate")
    arrays = candidate.weights(subject.graph)
    # Of a table of tokens, the golden requests look up a few rows (BART's has the name of the head it is too);
    # every other matrix is used as a whole.
    matrices = [
        name
        for name, array in arrays.items()
        if array.dtype == np.float32 and array.ndim > 1 and array.size > 32 and array.any()
        if not re.search(r"(embeddings?|embed_\w+|shared|lm_head)\.weight$", name)
    ]
    name = matrices[int(depth * len(matrices))]
    changed = arrays[name].copy()
    changed.reshape(-1).view(np.uint32)[np.abs(changed).argmax()] ^= _EXPONENT
    refused(candidate, subject.graph, {name: changed})


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_two_swapped_layers(small: Small, tmp_path: Path, subject: Subject) -> None:
    candidate = small.candidate(subject.model, tmp_path / "candidate")
    arrays = candidate.weights(subject.graph)
    pairs = {
        name: other
        for name in arrays
        if (found := re.search(subject.layers, name)) and found[1] in "01"
        for other in [name[: found.start(1)] + str(1 - int(found[1])) + name[found.end(1) :]]
        if other in arrays and arrays[other].shape == arrays[name].shape
    }
    refused(candidate, subject.graph, {name: arrays[other] for name, other in pairs.items()})


@pytest.mark.parametrize("subject", WITH_HEAD, ids=str)
def test_a_missing_head(small: Small, tmp_path: Path, subject: Subject) -> None:
    candidate = small.candidate(subject.model, tmp_path / "candidate")
    arrays = candidate.weights(subject.graph)
    head = {name: np.zeros_like(a) for name, a in arrays.items() if re.search(str(subject.head), name)}
    refused(candidate, subject.graph, head)


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


class TestGguf:
    """The same of a language model, in the precision it is packaged in and in the one on the way."""

    def proven(self, llama: TinyLlama, folder: Path, precision: str, edit: Callable[[Any], object]) -> None:
        artifact: Artifact = llama.artifacts[precision].model_copy(update={"path": "changed.gguf"})
        path = folder / "changed.gguf"
        shutil.copytree(llama.folder / "golden", folder / "golden")
        shutil.copyfile(llama.folder / (llama.artifacts[precision].path or ""), path)
        reader = llama_cpp_source.gguf().GGUFReader(path, "r+")
        edit(reader)
        reader.data.flush()
        (measure,) = answer(folder, llama.manifest(artifact), tolerance_of(artifact, "fp32"), 2, lambda _: None)
        assert measure.passed

    @staticmethod
    def tensor(reader: Any, name: str) -> NDArray[Any]:
        (found,) = (each.data for each in reader.tensors if each.name == name)
        array: NDArray[Any] = found
        return array

    @pytest.mark.parametrize("precision", ["F16", "Q4_K_M"])
    def test_the_untouched_file_passes(self, llama: TinyLlama, tmp_path: Path, precision: str) -> None:
        self.proven(llama, tmp_path, precision, lambda _: None)

    @pytest.mark.parametrize("layer", [0, 1])
    def test_one_flipped_bit_of_one_weight(self, llama: TinyLlama, tmp_path: Path, layer: int) -> None:
        def flip(reader: Any) -> None:
            # The exponent's highest bit: a lower one changes one weight of many by less than F16 may lose.
            self.tensor(reader, f"blk.{layer}.ffn_down.weight").view(np.uint8).reshape(-1)[1] ^= 0x40

        with pytest.raises(ParityError):
            self.proven(llama, tmp_path, "F16", flip)

    def test_one_flipped_bit_of_one_scale(self, llama: TinyLlama, tmp_path: Path) -> None:
        def flip(reader: Any) -> None:
            # A block of Q4_K begins with its scale in half precision; here its exponent's highest bit.
            self.tensor(reader, "blk.1.attn_q.weight").view(np.uint8).reshape(-1)[1] ^= 0x40

        with pytest.raises(ParityError):
            self.proven(llama, tmp_path, "Q4_K_M", flip)

    @pytest.mark.parametrize("precision", ["F16", "Q4_K_M"])
    def test_two_swapped_layers(self, llama: TinyLlama, tmp_path: Path, precision: str) -> None:
        def swap(reader: Any) -> None:
            kinds = [each.name.removeprefix("blk.0.") for each in reader.tensors if "blk.0." in each.name]
            assert len(kinds) == 9
            for kind in kinds:
                one, other = (self.tensor(reader, f"blk.{layer}.{kind}") for layer in (0, 1))
                if one.shape == other.shape:
                    one[:], other[:] = other.copy(), one.copy()

        with pytest.raises(ParityError, match="parity failed: logits"):
            self.proven(llama, tmp_path, precision, swap)

    def test_a_missing_head(self, llama: TinyLlama, tmp_path: Path) -> None:
        """A file without a head is read as one whose embedding is its head too."""

        def tie(reader: Any) -> None:
            self.tensor(reader, "output.weight")[:] = self.tensor(reader, "token_embd.weight")

        with pytest.raises(ParityError, match="parity failed: logits"):
            self.proven(llama, tmp_path, "F16", tie)

    def test_a_wrong_tokenizer(self, llama: TinyLlama, tmp_path: Path) -> None:
        def exchange(reader: Any) -> None:
            field = reader.fields["tokenizer.ggml.tokens"]
            words = {bytes(field.parts[place]): place for place in field.data}
            one, other = (words[f"\u2581{word}".encode()] for word in ("the", "you"))
            field.parts[one][:], field.parts[other][:] = field.parts[other].copy(), field.parts[one].copy()

        with pytest.raises(ParityError, match=r"wrong (tokenizer|result)"):
            self.proven(llama, tmp_path, "Q4_K_M", exchange)
