"""The same request, asked otherwise: as long to compute, and another answer.

Words change places, pictures are mirrored, turned and marked, sounds and tensors begin elsewhere. So a load
of such requests costs what the golden ones cost, and a cache of answers gains nothing on it; where repeated
golden requests come back faster than these, there is one.
"""

from __future__ import annotations

import base64
import binascii
import io
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]  # it ships no types
from PIL import Image, ImageOps, JpegImagePlugin, UnidentifiedImageError

_JPEG_QUALITIES = range(50, 100, 5)
_PNG_END = 12
"""Bytes of the chunk that ends a PNG file."""
_WORDS = ("text", "prompt")


class Variation:
    """Golden requests (as JSON objects) and their variants; what takes long is done here, once."""

    def __init__(self, golden: Sequence[dict[str, Any]]) -> None:
        self._pictures = {
            text: _turned(base64.b64decode(text)) for request in golden for text in _images(request)
        }

    def of(self, request: dict[str, Any], chance: random.Random) -> dict[str, Any]:
        """A variant of one of the golden requests, drawn by ``chance``; never changes the request itself."""
        changed = dict(request)
        for key in _WORDS:
            if key in request:
                changed[key] = _shuffled(request[key], chance)
        if "texts" in request:
            changed["texts"] = [_shuffled(text, chance) for text in request["texts"]]
        if "messages" in request:
            changed["messages"] = [
                message | {"content": _shuffled(message["content"], chance)} for message in request["messages"]
            ]
        if "image" in request:
            changed["image"] = self._picture(request["image"], chance)
        if "images" in request:
            changed["images"] = [self._picture(image, chance) for image in request["images"]]
        if "audio" in request:
            changed["audio"] = _other_sound(request["audio"], chance)
        if "audios" in request:
            changed["audios"] = [_other_sound(sound, chance) for sound in request["audios"]]
        if "inputs" in request:
            changed["inputs"] = {name: _moved(value, chance) for name, value in request["inputs"].items()}
        return changed

    def _picture(self, image: str, chance: random.Random) -> str:
        content = _marked(chance.choice(self._pictures[image]), chance.randbytes(8))
        return base64.b64encode(content).decode()


def _other_sound(text: str, chance: random.Random) -> str:
    """A sound as long, as a WAV file: its samples moved round by a random number, and a little softer."""
    try:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return text
    moved = np.roll(samples, chance.randrange(1, max(2, len(samples))), axis=0) * chance.uniform(0.8, 1.0)
    file = io.BytesIO()
    soundfile.write(file, moved, rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(file.getvalue()).decode()


def _moved(value: Any, chance: random.Random) -> Any:
    """The same numbers of a nested list, moved round along every axis."""
    if not isinstance(value, list) or not value:
        return value
    by = chance.randrange(len(value))
    return [_moved(each, chance) for each in (*value[by:], *value[:by])]


def _shuffled(text: str, chance: random.Random) -> str:
    words = text.split()
    return " ".join(chance.sample(words, len(words)))


def _images(request: dict[str, Any]) -> list[str]:
    return [*([request["image"]] if "image" in request else []), *request.get("images", [])]


def _turned(content: bytes) -> list[bytes]:
    """The picture mirrored, upside down and both, in its own size and format; itself if it cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            kind = picture.format or "PNG"
            made = [ImageOps.mirror(picture), ImageOps.flip(picture), ImageOps.mirror(ImageOps.flip(picture))]
            sampling = JpegImagePlugin.get_sampling(picture) if kind == "JPEG" else None
    except (UnidentifiedImageError, OSError):
        return [content]
    if sampling is None:
        return [_encoded(turned, kind) for turned in made]
    # As many bytes as the original, or nearly: a JPEG takes as long to decode as it has bits.
    return [
        min(
            (_encoded(turned, kind, quality=quality, subsampling=sampling) for quality in _JPEG_QUALITIES),
            key=lambda file: abs(len(file) - len(content)),
        )
        for turned in made
    ]


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def _marked(content: bytes, mark: bytes) -> bytes:
    """The same picture with a comment in its file, so that no two requests are the same bytes.

    JPEG: a COM segment after the start of the image (ITU-T T.81, B.2.4.5). PNG: a tEXt chunk before the end
    (W3C PNG, 11.3.3.3). Other formats are left as they are.
    """
    text = binascii.hexlify(mark)
    if content.startswith(b"\xff\xd8"):
        return content[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(text)) + text + content[2:]
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        body = b"tEXtComment\0" + text
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", binascii.crc32(body))
        return content[:-_PNG_END] + chunk + content[-_PNG_END:]
    return content
