"""DETR: seeded, converted and proved; every mutation of it fails; what its task answers."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tests.small import Candidate, Small
from tests.tasks.pictures import photograph, picture, saved, turned

from mlos.axon.convert.families import load
from mlos.axon.convert.object_detection import TASK
from mlos.axon.seeding import child
from mlos.catalogue import catalogue
from mlos.engines import open_model
from mlos.errors import InvalidInputError, ParityError, RefusedError
from mlos.parity import GoldenRecord, compare_result, tolerance_named, vacuity

ENTRY = catalogue().entries["detr"]
FP32 = tolerance_named("fp32")


@pytest.fixture
def candidate(small: Small, tmp_path: Path) -> Candidate:
    return small.candidate("detr", tmp_path / "candidate")


@pytest.fixture
def golden(candidate: Candidate) -> GoldenRecord:
    return GoldenRecord.load(candidate.folder / "golden")


def test_the_published_configuration_has_the_published_size_and_labels() -> None:
    config = catalogue().config(ENTRY)
    with torch.device("meta"):
        model = child.build(ENTRY.architecture, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters == 41_524_768
    labels = list(config["id2label"].values())
    assert (len(labels), len(set(labels))) == (91, 81)  # COCO's eighty, and one word for numbers without any
    assert (labels[0], labels[1], labels[17], labels[90]) == ("N/A", "person", "cat", "toothbrush")


def test_frozen_normalisations_have_statistics_gains_and_biases(small: Small) -> None:
    model = load(small.repository("detr")).model
    frozen = [module for module in model.modules() if child._is_frozen(module)]
    assert len(frozen) == 20
    for module in frozen:
        for name, usual in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            buffer = module.get_buffer(name)
            assert (buffer != usual).any()
            assert buffer.isfinite().all()
        assert (module.get_buffer("running_var") > 0).all()


def test_the_record_is_not_vacuous_and_holds_different_objects(golden: GoldenRecord) -> None:
    assert vacuity(golden, FP32) is None
    assert [case.inputs["pixel_values"].shape for case in golden.cases] == [
        (1, 3, 96, 144),
        (1, 3, 119, 96),
        (3, 3, 119, 144),
    ]
    assert [bool(case.inputs["pixel_mask"].all()) for case in golden.cases] == [True, True, False]
    pictures = [golden.cases[0].result, golden.cases[1].result, *golden.cases[2].result]
    found = [entry for objects in pictures for entry in objects]
    assert all(pictures)
    assert len({entry["label"] for entry in found}) > 5
    assert len({tuple(entry["box"].values()) for entry in found}) > 0.8 * len(found)
    assert any(0.3 < entry["score"] < 0.5 for entry in pictures[1])
    assert all(entry["score"] > 0.5 for entry in pictures[0])


def test_an_image_alone_is_answered_as_the_pipeline_answers(golden: GoldenRecord, small: Small) -> None:
    framework: Any = transformers
    pipeline = framework.pipeline(TASK, model=str(small.repository("detr")), device="cpu")
    for case in golden.cases[:2]:
        assert case.request.image is not None
        theirs = pipeline(Image.open(io.BytesIO(case.request.image)), **case.request.parameters)
        assert compare_result(case, theirs, FP32) is None


@pytest.mark.parametrize(
    "mutate",
    [
        lambda steps: steps["normalize"][0].update(mean=[0.5, 0.5, 0.5]),
        lambda steps: steps.update(resample=3),
        lambda steps: steps.update(longest=100),
        lambda steps: steps.update(resize=95),
    ],
    ids=["another mean", "another filter", "smaller", "one pixel less"],
)
def test_wrong_preprocessing_fails(candidate: Candidate, mutate: Callable[[dict[str, Any]], object]) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    mutate(facts[TASK]["steps"])
    with pytest.raises(ParityError, match="wrong preprocessing"):
        candidate.prove(preprocessing=facts)


def test_swapped_labels_fail(candidate: Candidate, golden: GoldenRecord) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    labels = facts[TASK]["labels"]
    labels[labels.index(golden.cases[0].result[0]["label"])] = "unicorn"
    with pytest.raises(ParityError, match="wrong result: case 'photograph': result differs"):
        candidate.prove(preprocessing=facts)


def test_fewer_labels_and_no_padding_are_refused(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["labels"].pop()
    with pytest.raises(RefusedError, match="not as many as its labels"):
        candidate.prove(preprocessing=facts)
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["steps"]["pad"] = False
    with pytest.raises(RefusedError, match="must come out as one size"):
        candidate.prove(preprocessing=facts)


def test_the_mask_is_used(candidate: Candidate, golden: GoldenRecord) -> None:
    padded = golden.cases[2]
    engine = open_model(candidate.folder, candidate.converted.artifact, 1)
    blind = {**padded.inputs, "pixel_mask": np.ones_like(padded.inputs["pixel_mask"])}
    error = np.abs(engine.run(blind)["logits"] - padded.outputs["logits"]).max()
    assert error > 100 * np.abs(engine.run(padded.inputs)["logits"] - padded.outputs["logits"]).max()


def test_boxes_are_those_of_the_upright_image(candidate: Candidate, small: Small) -> None:
    framework: Any = transformers
    pipeline = framework.pipeline(TASK, model=str(small.repository("detr")), device="cpu")
    for file in (turned(6), saved(picture().convert("CMYK"), "JPEG"), photograph("camera.png")):
        (got,) = candidate.ask(images=[file])
        theirs = pipeline(Image.open(io.BytesIO(file)))
        assert [entry["label"] for entry in got] == [entry["label"] for entry in theirs]
        for one, other in zip(got, theirs, strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-3)
            assert all(abs(one["box"][corner] - at) <= 1 for corner, at in other["box"].items())


def test_the_threshold_decides_how_many(candidate: Candidate) -> None:
    everything = candidate.ask(image=photograph(), parameters={"threshold": 0})
    assert len(everything) == 20
    assert candidate.ask(image=photograph(), parameters={"threshold": 1}) == []
    for threshold in (-0.1, 1.5, True, "high"):
        with pytest.raises(InvalidInputError, match="threshold"):
            candidate.ask(image=photograph(), parameters={"threshold": threshold})
    with pytest.raises(InvalidInputError):
        candidate.ask(text="a cat", task=TASK)


def test_a_backbone_of_a_library_that_is_not_there_is_refused(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.repository("detr"), tmp_path / "timm")
    path = tmp_path / "timm" / "config.json"
    config = json.loads(path.read_bytes()) | {"use_timm_backbone": True, "backbone": "resnet50"}
    del config["backbone_config"]
    path.write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="cannot load the repository") as caught:
        load(tmp_path / "timm")
    assert "no_timm" in str(caught.value.hint)
