"""ONNX repositories: asked by the tasks of their configuration, they answer as the SafeTensors packages do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.axon.conftest import answer, axon
from tests.axon.hub_server import HubServer, Repository
from tests.axon.onnx_files import line
from tests.axon.onnx_repositories import published
from tests.small import Small

from mlos import formats
from mlos.axon import fit
from mlos.axon.convert import graph_child
from mlos.catalogue import catalogue
from mlos.engines import open_model
from mlos.errors import RefusedError
from mlos.model import Artifact, InferenceRequest, Manifest
from mlos.tasks import Limits, Silence, tasks_of

FITTED = [
    *("bert", "minilm", "distilbert-sst2", "distilbert-ner", "resnet", "wav2vec2"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("dinov2", "segformer", "detr", "wav2vec2-base")),
]


def fitted(repository: Path, output: Path) -> fit.Fitted:
    """What the child makes of a repository, run in this process."""
    path = "onnx/model.onnx"
    summary = formats.verify(repository / path)
    artifact = Artifact(
        format="onnx", precision="fp32", path=path, inputs=summary.inputs, outputs=summary.outputs
    )
    output.mkdir(exist_ok=True)
    made = graph_child.main(fit.order(repository, output, artifact), lambda event: None)
    return fit.Fitted.model_validate(made)


def ask(repository: Path, output: Path, made: fit.Fitted, request: InferenceRequest) -> Any:
    """What the fitted graph's own task answers, as a worker computes it."""
    manifest = Manifest(
        name="graph",
        reference="file:graph",
        commit="0",
        weights="local",
        source_format="onnx",
        tasks=made.tasks,
        artifact=made.artifact,
        preprocessing=made.preprocessing,
        files=(),
    )
    task = tasks_of(output, manifest, Limits()).choose(request)
    prepared = task.preprocess(request)
    engine = open_model(repository, made.artifact, 1)
    return task.postprocess(prepared, task.compute(engine, prepared, Silence()))


@pytest.mark.parametrize("name", FITTED)
def test_a_graph_with_its_configuration_answers_as_the_converted_model(
    small: Small, tmp_path: Path, name: str
) -> None:
    repository = published(small, name, tmp_path / "repository")
    made = fitted(repository, tmp_path / "output")
    _, converted = small.converted(name)
    assert made.reason is None
    assert set(converted.tasks) <= set(made.tasks)
    assert made.architecture == catalogue().entries[name].architecture
    candidate = small.candidate(name, tmp_path / "candidate")
    for case in catalogue().entries[name].golden:
        request = {field: getattr(case.request, field) for field in case.request.__struct_fields__}
        expected = candidate.ask(**request)
        got = ask(repository, tmp_path / "output", made, case.request)
        assert json.dumps(got) == json.dumps(expected), case.name


def test_facts_are_those_that_the_family_packages(small: Small, tmp_path: Path) -> None:
    made = fitted(published(small, "bert", tmp_path / "repository"), tmp_path / "output")
    _, converted = small.converted("bert")
    for task in converted.tasks:
        assert {**made.preprocessing[task], "output": None} == {**converted.preprocessing[task], "output": None}
    assert [spec.shape[-1] for spec in made.artifact.outputs] == [
        spec.shape[-1] for spec in converted.artifact.outputs
    ]


@pytest.mark.parametrize("declared", [True, False])
def test_outputs_of_sentence_transformers_are_known_by_their_names(
    small: Small, tmp_path: Path, declared: bool
) -> None:
    """``token_embeddings`` is pooled as the repository declares; where it does not, by the mean."""
    rename = {"last_hidden_state": "token_embeddings"}
    repository = published(small, "minilm", tmp_path / "repository", rename=rename)
    if not declared:
        (repository / "modules.json").unlink()
    made = fitted(repository, tmp_path / "output")
    assert made.tasks == ("embeddings", "token-embeddings")
    assert made.preprocessing["embeddings"]["output"] == "token_embeddings"
    request = InferenceRequest(text="A cat sits on the mat.")
    got = np.array(ask(repository, tmp_path / "output", made, request)["embedding"])
    expected = np.array(small.candidate("minilm", tmp_path / "candidate").ask(text=request.text)["embedding"])
    if declared:
        np.testing.assert_array_equal(got, expected)
        return
    assert "does not say how it pools" in made.notes[0]
    assert np.linalg.norm(got) != pytest.approx(1)
    np.testing.assert_allclose(got / np.linalg.norm(got), expected, atol=1e-6)


def test_a_vector_that_the_graph_pools_itself_is_the_answer(small: Small, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    repository = published(small, "minilm", tmp_path / "repository")
    model = onnx.load(repository / "onnx" / "model.onnx")
    model.graph.node.append(
        helper.make_node("ReduceMax", ["last_hidden_state"], ["sentence_embedding"], axes=[1], keepdims=0)
        if model.opset_import[0].version < 18
        else helper.make_node(
            "ReduceMax", ["last_hidden_state", "own_axes"], ["sentence_embedding"], keepdims=0
        )
    )
    model.graph.initializer.append(helper.make_tensor("own_axes", TensorProto.INT64, [1], [1]))
    shape = ["batch", "features"]
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, shape)
    )
    onnx.save(model, repository / "onnx" / "model.onnx")
    made = fitted(repository, tmp_path / "output")
    assert made.tasks == ("embeddings",)
    assert made.preprocessing["embeddings"]["pooling"] == "model"
    answered = ask(repository, tmp_path / "output", made, InferenceRequest(texts=["One cat.", "Two"]))
    assert [each["dimensions"] for each in answered] == [made.artifact.outputs[0].shape[-1]] * 2
    assert np.linalg.norm(answered[0]["embedding"]) == pytest.approx(1, abs=1e-6)  # as modules.json declares


class TestWhatDoesNotFit:
    """Such a graph is served as tensors alone, with the reason."""

    def test_an_output_of_another_name(self, small: Small, tmp_path: Path) -> None:
        repository = published(small, "distilbert-sst2", tmp_path / "repository", rename={"logits": "scores"})
        made = fitted(repository, tmp_path / "output")
        assert (made.tasks, made.reason) == (("tensors",), "the graph gives no logits")

    def test_axes_of_fixed_lengths(self, small: Small, tmp_path: Path) -> None:
        import onnx

        repository = published(small, "distilbert-sst2", tmp_path / "repository")
        model = onnx.load(repository / "onnx" / "model.onnx")
        for value in model.graph.input:
            for axis, length in zip(value.type.tensor_type.shape.dim, (1, 16), strict=True):
                axis.dim_value = length
        onnx.save(model, repository / "onnx" / "model.onnx")
        made = fitted(repository, tmp_path / "output")
        assert made.tasks == ("tensors",)
        assert "fixed axes" in (made.reason or "")

    def test_labels_of_another_number(self, small: Small, tmp_path: Path) -> None:
        repository = published(small, "distilbert-sst2", tmp_path / "repository")
        config = json.loads((repository / "config.json").read_text())
        config["id2label"] = {"0": "a", "1": "b", "2": "c"}
        config["label2id"] = {"a": 0, "b": 1, "c": 2}
        (repository / "config.json").write_text(json.dumps(config))
        made = fitted(repository, tmp_path / "output")
        assert made.tasks == ("tensors",)
        assert "not as many as its labels" in (made.reason or "")

    def test_no_tokenizer(self, small: Small, tmp_path: Path) -> None:
        repository = published(small, "distilbert-sst2", tmp_path / "repository")
        for path in (*repository.glob("*token*"), *repository.glob("vocab*")):
            path.unlink()
        assert fitted(repository, tmp_path / "output").tasks == ("tensors",)

    def test_an_architecture_that_is_served_from_weights(self, small: Small, tmp_path: Path) -> None:
        repository = published(small, "distilbert-sst2", tmp_path / "repository")
        config = json.loads((repository / "config.json").read_text())
        config["architectures"] = ["GPT2LMHeadModel"]
        (repository / "config.json").write_text(json.dumps(config))
        assert "from GGUF" in (fitted(repository, tmp_path / "output").reason or "")

    def test_zero_shot_is_refused_by_name(self, small: Small, tmp_path: Path) -> None:
        repository = published(small, "distilbert-sst2", tmp_path / "repository")
        (repository / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
        with pytest.raises(RefusedError, match="zero-shot classification is not served"):
            fitted(repository, tmp_path / "output")


def test_a_repository_of_a_hub_is_installed_by_its_task(small: Small, tmp_path: Path, hub: HubServer) -> None:
    repository = published(small, "distilbert-sst2", tmp_path / "repository")
    files = {
        path.relative_to(repository).as_posix(): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file()
    }
    graph = files["onnx/model.onnx"]
    hub.repositories["org/sentiments-ONNX"] = Repository(
        files | {"onnx/model_quantized.onnx": graph, "model.onnx": graph, "pytorch_model.bin": b"\x80\x02."}
    )
    done = axon("install", "hf/org/sentiments-ONNX")
    assert done.returncode == 0, done.stderr
    assert "no reference" in done.stdout
    assert "took onnx/model.onnx; left aside 2 other ONNX models" in done.stderr
    assert "--allow-pickle" in done.stderr
    manifest = Manifest.model_validate(answer("info", "sentiments-ONNX")["manifest"])
    assert manifest.tasks == ("text-classification",)
    assert (manifest.golden, manifest.parity, manifest.artifact.path) == (None, (), "onnx/model.onnx")
    assert manifest.architecture == "DistilBertForSequenceClassification"
    roles = {file.path: file.role for file in manifest.files}
    assert (roles["tokenizer.json"], roles["config.json"]) == ("tokenizer", "config")
    again = answer("install", "hf/org/sentiments-ONNX")
    assert again["cached"] is True
    assert graph == (Path(again["folder"]) / "onnx/model.onnx").read_bytes()


def test_a_graph_alone_stays_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"], "model_type": "bert"}')
    answer("install", f"file:{line(tmp_path / 'line.onnx')}")
    assert answer("info", "line")["manifest"]["tasks"] == ["tensors"]
