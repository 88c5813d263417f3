"""Bodies that are files: forms as browsers and curl send them, images as they are."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.datastructures import Headers, QueryParams

from mlos.core.http.errors import MediaTypeError
from mlos.core.http.forms import of_file, of_form
from mlos.errors import InvalidInputError
from mlos.model import InferenceRequest

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8000
"""Two megabytes that begin like an image; nobody looks inside here."""


def form(files: Any, fields: Any = None) -> InferenceRequest:
    """What is understood of a form that a real client made."""
    request = httpx2.Request("POST", "http://x/", files=files, data=fields)
    return asyncio.run(of_form(Headers(dict(request.headers)), request.read()))


def test_a_file_is_an_image_byte_for_byte() -> None:
    assert form({"image": ("cat.png", PICTURE, "image/png")}) == InferenceRequest(image=PICTURE)
    assert form({"file": ("cat.png", PICTURE)}) == InferenceRequest(image=PICTURE)


def test_several_files_are_several_images_in_order() -> None:
    files = [("image", ("a.png", PICTURE)), ("image", ("b.png", b"other"))]
    assert form(files) == InferenceRequest(images=[PICTURE, b"other"])


def test_the_other_fields_are_words_or_json() -> None:
    asked = form(
        {"image": ("a", b"x")},
        {"task": "image-classification", "parameters": '{"top_k": 3}', "stream": "true"},
    )
    assert asked == InferenceRequest(
        image=b"x", task="image-classification", parameters={"top_k": 3}, stream=True
    )


def test_an_image_as_it_is_takes_its_fields_from_the_address() -> None:
    asked = of_file(
        PICTURE, "image", QueryParams({"parameters": '{"top_k": 1}', "task": "image-classification"})
    )
    assert asked == InferenceRequest(image=PICTURE, task="image-classification", parameters={"top_k": 1})


@pytest.mark.parametrize(
    ("files", "fields", "field"),
    [
        ({"picture": ("a", b"x")}, None, "picture"),
        ({"image": ("a", b"x")}, {"colour": "red"}, "colour"),
        ({"image": ("a", b"x")}, {"parameters": "{"}, "parameters"),
        ({"image": ("a", b"x")}, {"parameters": "[1]"}, "body"),
        ({"image": ("a", b"x")}, {"stream": "perhaps"}, "stream"),
        ({"image": ("a", b"x")}, {"task": ["a", "b"]}, "task"),
        ([("image", ("a", b"x"))] * 65, None, "body"),
    ],
)
def test_a_wrong_form_is_told_by_its_field(files: Any, fields: Any, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        form(files, fields)
    assert caught.value.field == field


def test_a_form_in_another_encoding_is_refused_before_it_is_decoded() -> None:
    """Some of Python's codecs take minutes for a megabyte, and the server's loop would wait for them."""
    kind = "multipart/form-data; boundary=x; charset=punycode"
    body = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + b"a" * 10 + b"\r\n--x--\r\n"
    with pytest.raises(MediaTypeError):
        asyncio.run(of_form(Headers({"content-type": kind}), body))
    plain = kind.replace("punycode", "UTF-8")
    assert asyncio.run(of_form(Headers({"content-type": plain}), body)) == InferenceRequest(text="a" * 10)


@pytest.mark.parametrize("charset", ["utf-8", "us-ascii"])
def test_text_that_is_not_in_its_encoding_is_refused_and_not_read_as_another(charset: str) -> None:
    kind = Headers({"content-type": f"multipart/form-data; boundary=x; charset={charset}"})
    head = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n'
    with pytest.raises(InvalidInputError, match="the text of 'text' is not "):
        asyncio.run(of_form(kind, head + b"caf\xe9" + b"\r\n--x--\r\n"))
    assert asyncio.run(of_form(kind, head + b"cafe" + b"\r\n--x--\r\n")) == InferenceRequest(text="cafe")


def test_a_field_that_stands_twice_in_an_address_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="stands 2 times"):
        of_file(PICTURE, "image", QueryParams([("task", "a"), ("task", "b")]))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut'),
    ],
)
def test_a_broken_form_is_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidInputError):
        asyncio.run(of_form(Headers({"content-type": content_type}), body))


def test_a_sound_may_be_the_body() -> None:
    request = of_file(b"RIFF", "audio", QueryParams(""))
    assert (request.audio, request.image) == (b"RIFF", None)
