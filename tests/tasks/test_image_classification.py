"""Image classification answers what the framework's own pipeline answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.tasks.pictures import photograph, turned

from mlos.errors import InvalidInputError, RefusedError, WorkerError
from mlos.model import Artifact, InferenceRequest, Manifest, TensorSpec
from mlos.tasks import Limits, Silence
from mlos.tasks.image_classification import ImageClassification

TASK = "image-classification"
LABELS = ["cat", "cup", "person", "rocket", "crane", "crane", "dog", "boat"]
STEPS = {
    "resize": [32, 48],
    "resample": 2,
    "rescale": 1 / 255,
    "normalize": [{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}],
}


def manifest(outputs: int = len(LABELS), **changed: Any) -> Manifest:
    options = {"steps": STEPS, "labels": LABELS, "scores": "softmax", **changed}
    return Manifest(
        name="tiny",
        reference="seeded/tiny/resnet@0",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=(TASK,),
        artifact=Artifact(
            format="onnx",
            precision="fp32",
            path="model.onnx",
            inputs=(TensorSpec(name="pixel_values", dtype="FP32", shape=("batch", 3, 32, 48)),),
            outputs=(TensorSpec(name="logits", dtype="FP32", shape=("batch", outputs)),),
        ),
        preprocessing={TASK: options},
        files=(),
    )


def task(**changed: Any) -> ImageClassification:
    return ImageClassification(Path(), manifest(**changed), Limits())


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The framework's own, with a random model of a few channels."""
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(LABELS)),
    )
    model: Any = transformers.ResNetForImageClassification(config).train(False)
    model.classifier[1].weight.data.mul_(20)
    processor: Any = transformers.ViTImageProcessorPil
    kind: Any = transformers.ImageClassificationPipeline
    return kind(model=model, image_processor=processor(size={"height": 32, "width": 48}), device="cpu")


class Framework:
    """An exact engine: the framework's model."""

    name = version = "framework"
    formats = frozenset({"onnx"})

    def __init__(self, model: Any) -> None:
        self._model = model

    @torch.no_grad()
    def run(self, inputs: Any, outputs: Any = None) -> dict[str, Any]:
        assert outputs == ("logits",)
        return {"logits": self._model(torch.from_numpy(inputs["pixel_values"])).logits.numpy()}


def answer(pipeline: Any, asked: ImageClassification, **request: Any) -> Any:
    prepared = asked.preprocess(InferenceRequest(**request))
    engine: Any = Framework(pipeline.model)
    return asked.postprocess(prepared, asked.compute(engine, prepared, Silence()))


def check_equal(ours: Any, theirs: Any) -> None:
    assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert set(one) == {"label", "score"}
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)


@pytest.mark.parametrize("file", [photograph(), photograph("camera.png"), turned(6)])
def test_the_pipelines_answer(pipeline: Any, file: bytes) -> None:
    check_equal(answer(pipeline, task(), image=file), pipeline(Image.open(io.BytesIO(file))))


def test_several_images_are_answered_in_order(pipeline: Any) -> None:
    files = [photograph(name) for name in ("rocket.jpg", "cat.jpg", "coffee.jpg")]
    ours = answer(pipeline, task(), images=files, parameters={"top_k": 3})
    theirs = [pipeline(Image.open(io.BytesIO(file)), top_k=3) for file in files]
    assert len(ours) == 3
    assert len({ranking[0]["score"] for ranking in ours}) == 3
    for one, other in zip(ours, theirs, strict=True):
        check_equal(one, other)


def test_a_list_of_one_image_is_answered_with_a_list(pipeline: Any) -> None:
    (ranking,) = answer(pipeline, task(), images=[photograph()])
    check_equal(ranking, pipeline(Image.open(io.BytesIO(photograph()))))


@pytest.mark.parametrize(("top_k", "answered"), [(1, 1), (8, 8), (1000, 8)])
def test_no_more_labels_are_answered_than_there_are(pipeline: Any, top_k: int, answered: int) -> None:
    ranking = answer(pipeline, task(), image=photograph(), parameters={"top_k": top_k})
    assert len(ranking) == answered
    assert sum(entry["score"] for entry in ranking) <= 1 + 1e-9


@pytest.mark.parametrize("scores", ["sigmoid", "none"])
def test_scores_that_are_no_shares(pipeline: Any, scores: str) -> None:
    theirs = pipeline(Image.open(io.BytesIO(photograph())), function_to_apply=scores)
    check_equal(answer(pipeline, task(scores=scores), image=photograph()), theirs)


def test_huge_logits_overflow_nowhere() -> None:
    asked = task(scores="sigmoid")
    prepared = asked.preprocess(InferenceRequest(image=photograph()))
    logits = np.array([[1e30, -1e30, 0, 1, 2, 3, 4, 5]], dtype=np.float32)
    scores = [entry["score"] for entry in asked.postprocess(prepared, {"logits": logits})]
    assert scores[0] == 1
    assert min(scores) > 0.4  # the five best of eight


def test_images_are_meant_for_this_task() -> None:
    assert task().accepts(InferenceRequest(image=b""))
    assert task().accepts(InferenceRequest(images=[]))
    assert not task().accepts(InferenceRequest(text="a cat"))


@pytest.mark.parametrize("top_k", [0, -1, 1001, 2.5, "5", True, None])
def test_a_wrong_top_k_is_refused(top_k: Any) -> None:
    with pytest.raises(InvalidInputError, match="'top_k': expected a whole number from 1 to 1000"):
        task().preprocess(InferenceRequest(image=photograph(), parameters={"top_k": top_k}))


def test_an_unknown_parameter_is_named() -> None:
    with pytest.raises(InvalidInputError, match="unknown parameter 'topk'"):
        task().preprocess(InferenceRequest(image=photograph(), parameters={"topk": 5}))


def test_nan_has_no_score() -> None:
    prepared = task().preprocess(InferenceRequest(image=photograph()))
    with pytest.raises(WorkerError, match="NaN or infinity in 'logits'"):
        task().postprocess(prepared, {"logits": np.full((1, 8), np.nan, dtype=np.float32)})


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"labels": None}, "preprocessing.image-classification.labels"),
        ({"labels": [1] * 8}, "preprocessing.image-classification.labels"),
        ({"scores": "argmax"}, "preprocessing.image-classification.scores"),
        ({"scores": ["softmax"]}, "preprocessing.image-classification.scores"),
        ({"outputs": 7}, "logits"),
    ],
)
def test_a_package_that_lacks_something_is_refused(changed: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError) as caught:
        task(**changed)
    assert caught.value.field == field
