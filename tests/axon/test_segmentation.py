"""SegFormer: seeded, converted and proved; every mutation of it fails; what its task answers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import Candidate, Small
from tests.tasks.pictures import photograph, picture, saved, turned

from mlos.axon.convert.segmentation import TASK
from mlos.axon.seeding import child
from mlos.catalogue import catalogue
from mlos.errors import InvalidInputError, ParityError, RefusedError
from mlos.parity import GoldenRecord, tolerance_named, vacuity
from mlos.parity.masks import read_masks

ENTRY = catalogue().entries["segformer"]


@pytest.fixture
def candidate(small: Small, tmp_path: Path) -> Candidate:
    return small.candidate("segformer", tmp_path / "candidate")


def test_the_published_configuration_has_the_published_size_and_labels() -> None:
    config = catalogue().config(ENTRY)
    with torch.device("meta"):
        model = child.build(ENTRY.architecture, config)
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters == 3_752_694
    labels = list(config["id2label"].values())
    assert (len(labels), len(set(labels))) == (150, 150)
    assert (labels[0], labels[7], labels[149]) == ("wall", "bed ", "flag")


def test_the_record_is_not_vacuous_and_every_pixel_is_in_one_part(candidate: Candidate) -> None:
    golden = GoldenRecord.load(candidate.folder / "golden")
    assert vacuity(golden, tolerance_named("fp32")) is None
    assert [case.outputs["logits"].shape for case in golden.cases] == [
        (1, 6, 128, 128),
        (1, 6, 128, 128),
        (2, 6, 128, 128),
    ]
    masks = read_masks(golden.cases[0].result)
    assert len(masks) > 3
    assert {mask.shape for mask in masks.values()} == {picture().size[::-1]}
    assert (np.sum(list(masks.values()), axis=0) == 1).all()


@pytest.mark.parametrize(
    "mutate",
    [
        lambda steps: steps["normalize"][0].update(mean=[0.5, 0.5, 0.5]),
        lambda steps: steps.update(resample=3),
        lambda steps: steps.update(resize=512, crop=[512, 512]),
    ],
    ids=["another mean", "another filter", "cropped"],
)
def test_wrong_preprocessing_fails(candidate: Candidate, mutate: Callable[[dict[str, Any]], object]) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    mutate(facts[TASK]["steps"])
    with pytest.raises(ParityError, match="wrong preprocessing"):
        candidate.prove(preprocessing=facts)


def test_swapped_labels_fail(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["labels"][:2] = reversed(facts[TASK]["labels"][:2])
    with pytest.raises(ParityError, match="wrong result: case 'photograph': result differs"):
        candidate.prove(preprocessing=facts)


def test_fewer_labels_are_refused(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["labels"].pop()
    with pytest.raises(RefusedError, match="not as many as its labels"):
        candidate.prove(preprocessing=facts)


def test_masks_are_as_large_as_the_upright_image(candidate: Candidate) -> None:
    width, height = picture("coffee.jpg").size
    (parts,) = candidate.ask(images=[turned(6)])
    assert {mask.shape for mask in read_masks(parts).values()} == {(width, height)}
    assert all(part["score"] is None for part in parts)
    narrow = candidate.ask(image=saved(picture().resize((700, 1)), "PNG"), parameters={"subtask": "semantic"})
    assert {mask.shape for mask in read_masks(narrow).values()} == {(1, 700)}


def test_another_subtask_and_a_text_are_refused(candidate: Candidate) -> None:
    with pytest.raises(InvalidInputError, match="subtask"):
        candidate.ask(image=photograph(), parameters={"subtask": "panoptic"})
    with pytest.raises(InvalidInputError):
        candidate.ask(text="a cat", task=TASK)
