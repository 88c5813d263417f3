"""CLIP: seeded, converted and proved as two graphs; every mutation of one fails; and what its tasks answer."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from PIL import Image
from tests.small import Candidate, Small
from tests.tasks.pictures import photograph

from mlos.axon.convert.image_text import TASK
from mlos.axon.seeding import child
from mlos.axon.seeding.clip_bpe import END, START, clip_bpe
from mlos.catalogue import catalogue
from mlos.engines import SideBySide, asked_of
from mlos.errors import InvalidInputError, ParityError, PayloadTooLargeError, RefusedError
from mlos.parity import GoldenRecord, tolerance_named, vacuity

ENTRY = catalogue().entries["clip"]
LABELS = ["a cat", "a dog", "a cup"]


@pytest.fixture
def candidate(small: Small, tmp_path: Path) -> Candidate:
    return small.candidate("clip", tmp_path / "candidate")


def test_the_published_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        model = child.build(ENTRY.architecture, catalogue().config(ENTRY))
    assert sum(parameter.numel() for parameter in model.parameters()) == ENTRY.parameters == 151_277_313


def test_the_record_holds_both_sides_and_is_not_vacuous(candidate: Candidate) -> None:
    golden = GoldenRecord.load(candidate.folder / "golden")
    assert vacuity(golden, tolerance_named("fp32")) is None
    shapes = [{name: each.shape for name, each in case.outputs.items()} for case in golden.cases]
    both = [
        {"image_embeds": (images, 32), "text_embeds": (texts, 32)} for images, texts in ((1, 4), (1, 2), (3, 3))
    ]
    one = [{name: (count, 32)} for name in ("text_embeds", "image_embeds") for count in (1, 3)]
    assert shapes == both + one
    # The labels are of different lengths, and so are the texts.
    assert not any(golden.cases[number].inputs["attention_mask"].all() for number in (2, 4))
    assert set(candidate.converted.artifact.parts) == {"text", "image"}
    assert candidate.converted.preprocessing[TASK]["logit_scale"] == pytest.approx(14.3, rel=0.2)


@pytest.mark.parametrize(
    "mutate",
    [
        lambda facts: facts["steps"]["normalize"][0].update(mean=[0.485, 0.456, 0.406]),
        lambda facts: facts["steps"].update(resample=2),
        lambda facts: facts.update(pad_token="!"),
        lambda facts: facts.update(max_length=5),
    ],
    ids=["another mean", "another filter", "another padding", "cut"],
)
def test_wrong_preprocessing_fails(candidate: Candidate, mutate: Callable[[dict[str, Any]], object]) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    mutate(facts[TASK])
    with pytest.raises(ParityError, match="wrong tokenizer"):  # so tensors with input_ids are called
        candidate.prove(preprocessing=facts)


def test_another_vocabulary_fails(candidate: Candidate) -> None:
    path = candidate.folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["model"]["merges"] = state["model"]["merges"][100:]
    path.write_text(json.dumps(state))
    with pytest.raises(ParityError, match="wrong tokenizer"):
        candidate.prove()


def test_another_scale_of_the_cosines_fails(candidate: Candidate) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[TASK]["logit_scale"] *= 1.2
    with pytest.raises(ParityError, match="wrong result: case 'photograph'"):
        candidate.prove(preprocessing=facts)


@pytest.mark.parametrize("side", ["text", "image"])
def test_a_flipped_bit_and_swapped_layers_fail(candidate: Candidate, side: str) -> None:
    path = candidate.folder / f"{side}.onnx"
    whole = onnx.load(path)
    weights = {each.name: each for each in whole.graph.initializer if each.dims and np.prod(each.dims) > 1}
    square = [each for each in weights.values() if len(each.dims) == 2 and each.dims[0] == each.dims[1]]
    assert len(square) >= 4
    damaged = onnx.numpy_helper.to_array(square[0]).copy()
    damaged.view(np.uint32)[3, 5] ^= 1 << 30
    one, other = (onnx.numpy_helper.to_array(each) for each in square[1:3])
    for changed in (
        {square[0].name: damaged},
        {square[1].name: other.copy(), square[2].name: one.copy()},
    ):
        mutated = onnx.ModelProto()
        mutated.CopyFrom(whole)
        for each in mutated.graph.initializer:
            if each.name in changed:
                each.CopyFrom(onnx.numpy_helper.from_array(changed[each.name], each.name))
        onnx.save_model(mutated, path)
        with pytest.raises(ParityError, match="parity failed"):
            candidate.prove()


def test_the_pipelines_answer(candidate: Candidate, small: Small) -> None:
    framework: Any = transformers
    pipeline = framework.pipeline(TASK, model=str(small.repository("clip")), device="cpu")
    files = [photograph(name) for name in ("rocket.jpg", "cat.jpg")]
    ours = candidate.ask(images=files, texts=LABELS)
    for ranking, file in zip(ours, files, strict=True):
        theirs = pipeline(Image.open(io.BytesIO(file)), candidate_labels=LABELS)
        assert [entry["label"] for entry in ranking] == [entry["label"] for entry in theirs]
        for one, other in zip(ranking, theirs, strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-4)
    alone = candidate.ask(image=files[0], texts=LABELS)
    assert [entry["score"] for entry in alone] == pytest.approx([entry["score"] for entry in ours[0]])
    assert candidate.ask(image=files[0], texts=["one alone"])[0]["score"] == 1


def test_an_empty_and_a_very_long_label_are_answered(candidate: Candidate) -> None:
    answer = candidate.ask(image=photograph(), texts=["", "cat " * 25_000, "🐈"])
    assert sum(entry["score"] for entry in answer) == pytest.approx(1)


def test_one_side_alone_is_answered_as_tensors(candidate: Candidate) -> None:
    case = GoldenRecord.load(candidate.folder / "golden").cases[0]
    text = {name: case.inputs[name] for name in ("input_ids", "attention_mask")}
    answer = candidate.ask(inputs=text)
    assert set(answer) == {"text_embeds"}
    np.testing.assert_allclose(answer["text_embeds"], case.outputs["text_embeds"], atol=1e-4)
    image = {"pixel_values": case.inputs["pixel_values"]}
    assert set(candidate.ask(inputs=image)) == {"image_embeds"}
    assert set(candidate.ask(inputs=dict(case.inputs))) == {"image_embeds", "text_embeds"}
    with pytest.raises(InvalidInputError, match="'attention_mask' is missing"):
        candidate.ask(inputs={"input_ids": case.inputs["input_ids"]})
    with pytest.raises(InvalidInputError, match="'pixel_values' is missing"):
        candidate.ask(inputs=text, outputs=["image_embeds"])
    with pytest.raises(InvalidInputError, match="no output 'logits'"):
        candidate.ask(inputs=text, outputs=["logits"])


def test_parts_that_are_not_the_whole_are_refused(candidate: Candidate) -> None:
    artifact = candidate.converted.artifact
    assert asked_of(artifact, (), ["text_embeds"]).inputs == artifact.parts["text"].inputs
    with pytest.raises(RefusedError, match="not those of its parts"):
        SideBySide(artifact.model_copy(update={"outputs": artifact.outputs[:1]}), {})


@pytest.mark.parametrize("template", ["{0.__class__}", "{:>1000000000}", "{label}", "{}}", "no place", 3])
def test_a_template_that_could_do_more_is_refused(candidate: Candidate, template: Any) -> None:
    with pytest.raises(InvalidInputError, match="hypothesis_template"):
        candidate.ask(image=photograph(), texts=LABELS, parameters={"hypothesis_template": template})


def test_a_template_that_multiplies_is_refused_before_it_is_written_out(candidate: Candidate) -> None:
    template = "{}" * 10_000
    with pytest.raises(PayloadTooLargeError, match="labels in their template"):
        candidate.ask(image=photograph(), texts=["x" * 10_000], parameters={"hypothesis_template": template})


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"image": b"", "texts": []}, "texts"),
        ({"images": [], "texts": ["a cat"]}, "images"),
        ({"image": b"", "task": TASK}, "image"),
        ({"text": "a cat", "task": TASK}, "text"),
    ],
)
def test_what_is_missing_is_named(candidate: Candidate, request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        candidate.ask(**request_)
    assert caught.value.field == field


def test_the_made_up_vocabulary_is_laid_out_as_clips() -> None:
    vocabulary = json.loads(clip_bpe(49408))["model"]["vocab"]
    assert len(vocabulary) == 49408
    assert (vocabulary["!"], vocabulary["!</w>"]) == (0, 256)
    assert (vocabulary[START], vocabulary[END]) == (49406, 49407)


def framework(small: Small) -> tuple[Any, Any, Any]:
    """CLIP as the framework loads it: model, tokenizer and image processor."""
    source = small.repository("clip")
    auto: Any = transformers.AutoImageProcessor
    return (
        transformers.CLIPModel.from_pretrained(source).train(False),
        transformers.AutoTokenizer.from_pretrained(source),
        auto.from_pretrained(source, backend="pil"),
    )


def unit(features: Any) -> Any:
    vectors = features.pooler_output
    return (vectors / vectors.norm(dim=-1, keepdim=True)).tolist()


def test_a_text_alone_is_embedded_as_the_framework_does(candidate: Candidate, small: Small) -> None:
    model, tokenizer, _ = framework(small)
    texts = ["a cat", "two engineers before a ship, which left the harbour", ""]
    with torch.no_grad():
        wanted = unit(model.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")))
    got = candidate.ask(texts=texts)
    assert [each["dimensions"] for each in got] == [32] * 3
    np.testing.assert_allclose([each["embedding"] for each in got], wanted, atol=1e-5)
    one = candidate.ask(text=texts[1])
    np.testing.assert_allclose(one["embedding"], wanted[1], atol=1e-5)
    assert np.linalg.norm(one["embedding"]) == pytest.approx(1)


def test_an_image_alone_is_embedded_as_the_framework_does(candidate: Candidate, small: Small) -> None:
    model, _, processor = framework(small)
    file = photograph()
    pixels = processor(images=[Image.open(io.BytesIO(file)).convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        (wanted,) = unit(model.get_image_features(**pixels))
    got = candidate.ask(image=file)
    np.testing.assert_allclose(got["embedding"], wanted, atol=1e-5)
    (several,) = candidate.ask(images=[file])
    assert several == got


def test_the_cosine_of_both_is_what_decides_between_labels(candidate: Candidate) -> None:
    image = np.array(candidate.ask(image=photograph())["embedding"])
    labels = [f"This is a photo of {label}." for label in LABELS]
    texts = np.array([each["embedding"] for each in candidate.ask(texts=labels)])
    logits = candidate.converted.preprocessing[TASK]["logit_scale"] * texts @ image
    shares = np.exp(logits) / np.exp(logits).sum()
    scores = {each["label"]: each["score"] for each in candidate.ask(image=photograph(), texts=LABELS)}
    np.testing.assert_allclose([scores[label] for label in LABELS], shares, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "output"), [("embeddings", "image_embeds"), ("image-embeddings", "text_embeds")]
)
def test_the_other_sides_vectors_fail(candidate: Candidate, task: str, output: str) -> None:
    facts = copy.deepcopy(candidate.converted.preprocessing)
    facts[task]["output"] = output
    with pytest.raises(RefusedError):
        candidate.prove(preprocessing=facts)
