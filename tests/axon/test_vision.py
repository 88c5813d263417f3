"""Image classifiers: seeded, converted and proved; and every mutation of one fails."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.axon.test_prove import Candidate
from tests.small import Small
from tests.tasks.pictures import photograph, picture, saved, turned

from mlos.axon import prove_child
from mlos.axon.convert import Converted, convert
from mlos.axon.convert.families import load
from mlos.axon.convert.onnx_export import to_onnx
from mlos.axon.convert.vision import TASK, Vision
from mlos.axon.seeding import child, seed
from mlos.axon.seeding.batch import batch
from mlos.catalogue import catalogue
from mlos.console import Console
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import InvalidInputError, ParityError, RefusedError
from mlos.model import InferenceRequest
from mlos.parity import GoldenRecord, tolerance_named, vacuity

ENTRY = catalogue().entries["resnet"]
FP32 = tolerance_named("fp32")


@pytest.fixture(scope="session")
def tiny_resnet(small: Small) -> Path:
    """A repository in the hub's layout: ResNet's architecture, small, seeded."""
    return small.repository("resnet")


@pytest.fixture(scope="session")
def converted(tiny_resnet: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Converted]:
    folder = tmp_path_factory.mktemp("converted-resnet")
    requests = [(case.name, case.request) for case in ENTRY.golden]
    return folder, convert(tiny_resnet, folder, requests, ENTRY.tasks, Console())


@pytest.fixture
def candidate(converted: tuple[Path, Converted], tmp_path: Path, console: Console) -> Candidate:
    folder, made = converted
    shutil.copytree(folder, tmp_path / "candidate")
    return Candidate(tmp_path / "candidate", made, console)


@pytest.fixture
def repository(tiny_resnet: Path, tmp_path: Path) -> Path:
    """A repository that a test may damage."""
    shutil.copytree(tiny_resnet, tmp_path / "repository")
    return tmp_path / "repository"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_published_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        model = child.build(ENTRY.architecture, catalogue().config(ENTRY))
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters == 25_557_032


def test_the_labels_are_imagenets_thousand() -> None:
    labels = catalogue().config(ENTRY)["id2label"]
    assert list(labels) == [str(number) for number in range(1000)]
    assert len(set(labels.values())) == 999
    assert labels["134"] == labels["517"] == "crane"  # the bird and the machine
    assert (labels["0"], labels["281"], labels["999"]) == (
        "tench, Tinca tinca",
        "tabby, tabby cat",
        "toilet tissue, toilet paper, bathroom tissue",
    )


def test_the_same_recipe_gives_the_same_bytes(tiny_resnet: Path, tmp_path: Path) -> None:
    seed(ENTRY, True, tmp_path, Console())
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert names == {path.name for path in tmp_path.iterdir()} == {path.name for path in tiny_resnet.iterdir()}
    for name in names:
        assert (tmp_path / name).read_bytes() == (tiny_resnet / name).read_bytes()


def test_calibration_leaves_no_layer_dead_and_no_label_common() -> None:
    model = child.build(ENTRY.architecture, catalogue().config(ENTRY, tiny=True))
    child.fill(model, 3)
    child.calibrate(model, 3, [(re.compile(r"layer\.2\.normalization$"), 0.25)], lambda _: None)
    spread: dict[str, tuple[float, float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(
                lambda module, _, out, name=name: spread.update({name: (float(out.mean()), float(out.std()))})
            )
    model.double()
    with torch.no_grad():
        logits = model(**batch(model, 3)).logits
    assert len(spread) == 20
    for name, (mean, deviation) in spread.items():
        wanted = 0.25 if name.endswith("layer.2.normalization") else 1.0
        assert deviation == pytest.approx(wanted, rel=0.35), name  # with noise on gains and biases
        assert abs(mean) < 0.2
    assert float((logits - logits.mean(0)).std()) == pytest.approx(1.0, rel=0.1)
    assert float(logits.mean(0).abs().mean()) < 0.2  # the noise of the biases
    assert len(set(logits.argmax(1).tolist())) > 8  # of sixteen pictures


def test_what_was_made_is_described(converted: tuple[Path, Converted]) -> None:
    folder, made = converted
    assert (made.architecture, made.parameters, made.tasks) == (ENTRY.architecture, 162_992, (TASK,))
    (taken,), (given,) = made.artifact.inputs, made.artifact.outputs
    assert (taken.name, taken.dtype, taken.shape) == ("pixel_values", "FP32", ("batch", 3, 224, 224))
    assert (given.name, given.dtype, given.shape) == ("logits", "FP32", ("batch", 1000))
    facts = made.preprocessing[TASK]
    assert facts["scores"] == "softmax"
    assert facts["labels"] == list(catalogue().config(ENTRY)["id2label"].values())
    assert facts["steps"] == {
        "resize": 256,
        "longest": None,
        "resample": 3,
        "crop": [224, 224],
        "rescale": 1 / 255,
        "offset": 0.0,
        "normalize": [{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}],
        "pad": False,
    }
    assert dict(made.files)["preprocessor_config.json"] == "config"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert written == {path for path, _ in made.files}


def test_the_golden_record_is_the_frameworks_and_not_vacuous(
    converted: tuple[Path, Converted], tiny_resnet: Path
) -> None:
    golden = GoldenRecord.load(converted[0] / "golden")
    assert vacuity(golden, FP32) is None
    cases = {case.name: case for case in golden.cases}
    assert [len(case.inputs["pixel_values"]) for case in golden.cases] == [1, 1, 3, 1]
    decided = {int(label) for case in golden.cases for label in case.outputs["logits"].argmax(-1)}
    assert len(decided) >= 4
    framework: Any = transformers
    pipeline = framework.pipeline(TASK, model=str(tiny_resnet), device="cpu")
    theirs = pipeline(Image.open(io.BytesIO(photograph("camera.png"))), top_k=3)
    for one, other in zip(cases["grey"].result, theirs, strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    assert [len(ranking) for ranking in cases["batch"].result] == [5, 5, 5]
    assert [len(ranking) for ranking in cases["single-of-batch"].result] == [1000]


@pytest.mark.parametrize("images", [1, 5])
def test_the_export_equals_the_framework_at_other_batches(
    converted: tuple[Path, Converted], tiny_resnet: Path, images: int
) -> None:
    folder, made = converted
    pixels = np.random.default_rng(0).normal(size=(images, 3, 224, 224)).astype(np.float32)
    model: Any = transformers.ResNetForImageClassification.from_pretrained(tiny_resnet)
    with torch.no_grad():
        wanted = model(torch.from_numpy(pixels)).logits.numpy()
    got = OnnxRuntimeEngine.open(folder, made.artifact, threads=1).run({"pixel_values": pixels})
    np.testing.assert_allclose(got["logits"], wanted, atol=1e-4)


def test_the_converted_model_passes(candidate: Candidate) -> None:
    (measure,) = candidate.prove()
    assert measure.output == "logits"
    assert measure.passed
    assert 0 < measure.max_abs_error < 1e-4
    assert measure.argmax_agreement == 1


@pytest.mark.parametrize(
    "mutate",
    [
        lambda steps: steps["normalize"][0].update(mean=[0.5, 0.5, 0.5]),
        lambda steps: steps["normalize"][0].update(mean=[0.406, 0.456, 0.485]),
        lambda steps: steps["normalize"][0].update(std=[0.229, 0.224, 0.229]),
        lambda steps: steps.update(normalize=[]),
        lambda steps: steps.update(rescale=1 / 256),
        lambda steps: steps.update(resample=2),
        lambda steps: steps.update(resize=224),
        lambda steps: steps.update(resize=[256, 256]),
        lambda steps: steps.update(resize=257),
    ],
    ids=[
        "another mean",
        "blue for red",
        "one spread",
        "not normalised",
        "rescaled by 256",
        "another filter",
        "another size",
        "out of proportion",
        "a pixel more",
    ],
)
def test_wrong_preprocessing_fails_and_says_where(
    candidate: Candidate, mutate: Callable[[dict[str, Any]], object]
) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    mutate(facts[TASK]["steps"])
    with pytest.raises(
        ParityError, match=r"wrong preprocessing: case '[\w-]+': pixel_values differ at \[0, "
    ) as caught:
        candidate.prove(preprocessing=facts)
    assert caught.value.expected
    assert caught.value.got


def test_swapped_labels_fail(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    labels = facts[TASK]["labels"]
    golden = GoldenRecord.load(candidate.folder / "golden")
    best = int(golden.cases[0].outputs["logits"].argmax())
    labels[best], labels[best - 1] = labels[best - 1], labels[best]
    with pytest.raises(ParityError, match=r"wrong result: case 'photograph': result\[0\] differs"):
        candidate.prove(preprocessing=facts)


def test_other_scores_fail(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["scores"] = "sigmoid"
    with pytest.raises(ParityError, match="wrong result"):
        candidate.prove(preprocessing=facts)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_plain_initialisation_is_vacuous(tiny_resnet: Path) -> None:
    """One class for all: what a model does whose weights are as the framework first draws them."""
    torch.manual_seed(0)
    plain = load(tiny_resnet)
    model: Any = plain.model
    model.init_weights()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_parameters()
    requests = [
        {"name": case.name, "request": {"image": case.request.image}}
        for case in ENTRY.golden
        if case.request.image is not None
    ]
    assert "logits" in str(vacuity(plain.record(requests, lambda: None), FP32))


# Per name: what the configuration says, and what the image processor's does.
REPOSITORIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViTForImageClassification": (
        {"model_type": "vit", "hidden_size": 32, "intermediate_size": 64, "image_size": 48, "patch_size": 8}
        | {"num_hidden_layers": 2, "num_attention_heads": 2},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}},
    ),
    "ConvNextForImageClassification": (
        {
            "model_type": "convnext",
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_stages": 2,
            "image_size": 64,
        },
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 64}, "crop_pct": 0.875},
    ),
    "MobileNetV2ForImageClassification": (
        {"model_type": "mobilenet_v2", "image_size": 64, "depth_multiplier": 0.25},
        {"image_processor_type": "MobileNetV2ImageProcessor", "size": {"shortest_edge": 72}}
        | {"crop_size": {"height": 64, "width": 64}},
    ),
}


@pytest.mark.filterwarnings("ignore")  # the exporter's own
@pytest.mark.parametrize("architecture", REPOSITORIES)
def test_other_classifiers_go_the_same_way(architecture: str, tmp_path: Path, console: Console) -> None:
    settings, processor = REPOSITORIES[architecture]
    config = settings | {
        "architectures": [architecture],
        "id2label": {str(number): f"label {number}" for number in range(40)},
    }
    source, output = tmp_path / "source", tmp_path / "output"
    source.mkdir()
    output.mkdir()
    recipe = {
        "architecture": architecture,
        "config": config,
        "seed": 1,
        "spread": [("^classifier", 2.0)],
        "parameters": sum(each.numel() for each in child.build(architecture, config).parameters()),
        "files": {"preprocessor_config.json": processor},
    }
    threads = torch.get_num_threads()
    child.main({"recipe": recipe, "destination": source}, lambda _: None)
    torch.set_num_threads(threads)
    family = load(source)
    assert isinstance(family, Vision)
    requests = family.fit(
        {TASK: [_given(case.name, case.request) for case in catalogue().defaults[TASK].golden]}
    )
    family.record(requests, lambda: None).save(output / "golden")
    made = family.write(output, to_onnx, lambda _: None)
    described = Converted(
        artifact=made.artifact,
        tasks=tuple(family.tasks),
        architecture=architecture,
        parameters=recipe["parameters"],
        preprocessing=family.preprocessing(),
        tools=made.tools,
        files=made.files,
    )
    manifest = Candidate(output, described, console).draft()
    (measure,) = prove_child.answer(output, manifest, FP32, 1, lambda _: None)
    assert measure.passed


def _given(name: str, request: InferenceRequest) -> dict[str, Any]:
    files = {"image": request.image} if request.image is not None else {"images": request.images}
    return {"name": name, "request": files}


def test_a_turned_photograph_is_a_golden_request_too(tiny_resnet: Path) -> None:
    family = load(tiny_resnet)
    requests = [
        {"name": "turned", "request": {"image": turned(6)}},
        {
            "name": "cmyk",
            "request": {"image": saved(picture().convert("CMYK"), "JPEG")},
        },
    ]
    one, other = family.record(requests, lambda: None).cases
    assert one.inputs["pixel_values"].shape == other.inputs["pixel_values"].shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"text": "a cat"}, InvalidInputError),
        ({"images": []}, InvalidInputError),
        ({"image": b"", "parameters": {"threshold": 1}}, InvalidInputError),
        ({"image": b"", "task": "embeddings"}, RefusedError),
    ],
)
def test_a_golden_request_that_cannot_be_answered_is_named(
    tiny_resnet: Path, request_: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error, match="golden request odd"):
        load(tiny_resnet).record([{"name": "odd", "request": request_}], lambda: None)


def test_a_repository_without_an_image_processor_is_refused(repository: Path) -> None:
    (repository / "preprocessor_config.json").unlink()
    with pytest.raises(RefusedError, match="transformers cannot load the repository"):
        load(repository)


def test_missing_weights_are_never_made_up(repository: Path) -> None:
    change(repository / "config.json", depths=[2, 1, 1, 2])
    with pytest.raises(RefusedError, match=r"stages\.3\.layers\.1\..* is missing"):
        load(repository)


@pytest.mark.parametrize(
    ("problem", "scores"),
    [("multi_label_classification", "sigmoid"), ("regression", "none"), (None, "softmax")],
)
def test_the_problem_decides_how_logits_become_scores(
    repository: Path, problem: str | None, scores: str
) -> None:
    change(repository / "config.json", problem_type=problem)
    assert load(repository).preprocessing()[TASK]["scores"] == scores
