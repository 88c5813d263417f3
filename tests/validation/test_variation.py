from __future__ import annotations

import base64
import io
import random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlos.model import InferenceRequest
from mlos.validation.variation import Variation


def picture(kind: str) -> str:
    """A small picture without symmetry, as base64."""
    pixels = np.arange(12 * 8 * 3, dtype=np.uint8).reshape(8, 12, 3)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


def variants(request: dict[str, Any], count: int = 40) -> list[dict[str, Any]]:
    variation, chance = Variation([request]), random.Random(3)
    return [variation.of(request, chance) for _ in range(count)]


@pytest.mark.parametrize(
    "request_",
    [
        {"text": "a b c d e f g h", "parameters": {"top_k": 3}},
        {"texts": ["a b c d e f g h", "The [MASK] sleeps."]},
        {"prompt": "once upon a time there was", "parameters": {"max_tokens": 4}},
        {"messages": [{"role": "user", "content": "who are you and why"}]},
    ],
)
def test_words_change_places_and_stay_the_same_words(request_: dict[str, Any]) -> None:
    before = repr(request_)
    (varied,) = variants(request_, 1)
    assert varied != request_
    assert sorted(words(varied)) == sorted(words(request_))
    assert varied.get("parameters") == request_.get("parameters")
    assert repr(request_) == before, "the golden request itself stays as it is"


def words(request: dict[str, Any]) -> list[str]:
    texts = [request.get("text", ""), request.get("prompt", ""), *request.get("texts", [])]
    texts += [f"{message['role']}: {message['content']}" for message in request.get("messages", [])]
    return " ".join(texts).split()


def test_the_roles_of_a_conversation_stay() -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "say one two three"}]
    (varied,) = variants({"messages": messages}, 1)
    assert [message["role"] for message in varied["messages"]] == ["system", "user"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_turned_and_no_two_requests_are_the_same_bytes(kind: str) -> None:
    original = picture(kind)
    made = [variant["image"] for variant in variants({"image": original})]
    assert len({original, *made}) == len(made) + 1
    pixels = {np.asarray(decoded(image).convert("RGB")).tobytes() for image in made}
    assert len(pixels) == 3
    assert np.asarray(decoded(original)).tobytes() not in pixels
    assert {(decoded(image).size, decoded(image).format) for image in made} == {((12, 8), kind)}


@pytest.mark.parametrize("quality", [60, 75, 90])
def test_a_turned_photograph_has_about_as_many_bytes(quality: int) -> None:
    noise = np.random.default_rng(4).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((240, 160)).save(file, format="JPEG", quality=quality, subsampling=2)
    (varied,) = variants({"image": base64.b64encode(file.getvalue()).decode()}, 1)
    assert len(base64.b64decode(varied["image"])) == pytest.approx(len(file.getvalue()), rel=0.1)


def test_several_pictures_are_each_varied() -> None:
    request = {"images": [picture("PNG"), picture("JPEG")]}
    (varied,) = variants(request, 1)
    assert [decoded(image).format for image in varied["images"]] == ["PNG", "JPEG"]
    assert all(one != other for one, other in zip(varied["images"], request["images"], strict=True))


def test_other_formats_are_turned_without_a_mark() -> None:
    made = {variant["image"] for variant in variants({"image": picture("BMP")})}
    assert {decoded(image).format for image in made} == {"BMP"}
    assert len(made) == 3


def test_what_is_no_picture_is_asked_as_it_is() -> None:
    content = base64.b64encode(b"not a picture").decode()
    assert variants({"image": content}, 1) == [{"image": content}]


def test_every_kind_of_input_that_a_request_can_hold_is_known() -> None:
    plain = {"inputs", "outputs", "task", "stream", "parameters"}
    varied = {"text", "texts", "prompt", "messages", "image", "images", "audio", "audios"}
    assert set(InferenceRequest.__struct_fields__) == plain | varied, "a new input must be varied too"


def test_tensors_are_moved_round_and_keep_their_shapes_and_numbers() -> None:
    golden = {"inputs": {"x": np.arange(24.0).reshape(2, 3, 4).tolist(), "n": 5, "none": []}}
    before = repr(golden)
    varied = [each["inputs"] for each in variants(golden)]
    assert repr(golden) == before
    for each in varied:
        assert np.shape(each["x"]) == (2, 3, 4)
        assert sorted(np.ravel(each["x"])) == list(range(24))
        assert (each["n"], each["none"]) == (5, [])
    assert len({repr(each["x"]) for each in varied}) > 30
