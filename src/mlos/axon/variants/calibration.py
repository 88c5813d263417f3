"""What a variant in static int8 is calibrated with: texts, pictures and sounds that nothing else is judged by.

None is a golden request, which the gate judges a variant by, or a passage of the retrieval corpus, which it is
measured by. Pictures are parts of the catalogue's photographs, from other places, in other light, some
mirrored; so they show the same things as the golden ones, and no picture twice.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageEnhance

from mlos.catalogue import catalogue
from mlos.errors import InvalidInputError, RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks import Tasks, tasks_of

_HELD_BACK = 3
"""One in so many examples is held back."""
_PARTS = (
    ((0.0, 0.0, 0.6, 0.7), 0.6),
    ((0.4, 0.0, 1.0, 0.6), 1.3),
    ((0.0, 0.3, 0.7, 1.0), 0.85),
    ((0.3, 0.4, 1.0, 1.0), 1.0),
    ((0.2, 0.1, 0.6, 0.5), 1.15),
    ((0.5, 0.2, 1.0, 0.7), 0.7),
    ((0.0, 0.0, 0.9, 0.5), 1.0),
    ((0.1, 0.5, 0.8, 1.0), 1.5),
)
"""Left, top, right and bottom of a part, as shares of the picture, and how bright it is made."""
_JOINED = (2, 4, 8, 16, 32)
"""How many texts are joined to one, for inputs of other lengths."""


@dataclass(frozen=True)
class Examples:
    """Tensors as the model takes them: some to fix scales with, some held back to see what the scales do."""

    seen: tuple[Tensors, ...]
    held_back: tuple[Tensors, ...]


def examples(package: Path, manifest: Manifest) -> Examples:
    """Examples for the model in the folder ``package``, as its own tasks prepare them.

    Raises:
        RefusedError: if it takes neither texts nor pictures nor sounds.
    """
    tasks = tasks_of(package, manifest)
    for probe, requests in (
        (InferenceRequest(text=""), _texts(manifest)),
        (InferenceRequest(image=b""), _pictures()),
        (InferenceRequest(audio=b""), _sounds()),
    ):
        if _accepted(tasks, probe):
            prepared = [tasks.choose(request).preprocess(request).inputs for request in requests]
            held_back = prepared[_HELD_BACK - 1 :: _HELD_BACK]
            seen = [each for number, each in enumerate(prepared, 1) if number % _HELD_BACK]
            return Examples(tuple(seen), tuple(held_back))
    raise RefusedError(
        f"{manifest.name} takes neither texts nor pictures nor sounds, and nothing else can calibrate it",
        field="static",
        expected="a task that takes one of them",
        got=", ".join(manifest.tasks),
    )


def _accepted(tasks: Tasks, probe: InferenceRequest) -> bool:
    try:
        return tasks.choose(probe).accepts(probe)
    except InvalidInputError:  # of a model that takes named tensors and nothing else
        return False


def _texts(manifest: Manifest) -> Iterator[InferenceRequest]:
    """Each text alone, then joined ones, then three of different lengths in a batch, with padding."""
    path = catalogue().folder / "calibration" / "texts.toml"
    texts: list[str] = tomllib.loads(path.read_text(encoding="utf-8"))["texts"]
    mask = manifest.preprocessing.get("fill-mask", {}).get("mask_token")
    if mask is not None:
        texts = [_masked(text, mask) for text in texts]  # a task that fills masks refuses a text without
    count = len(texts)
    for text in texts:
        yield InferenceRequest(text=text)
    for joined in _JOINED:
        for start in range(0, count, joined):
            yield InferenceRequest(text=" ".join(texts[start : start + joined]))
    for number in range(0, count, 3):
        yield InferenceRequest(texts=[texts[number], texts[(5 * number + 7) % count], texts[-1 - number]])


def _masked(text: str, mask: str) -> str:
    """The text with its third word masked."""
    words = text.split(" ")
    words[min(2, len(words) - 1)] = mask
    return " ".join(words)


def _pictures() -> Iterator[InferenceRequest]:
    """Each part of each photograph alone, then two of different sizes in a batch."""
    folder = catalogue().folder / "images"
    photographs = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    parts = [
        _part(path, *each, mirrored=bool((row + column) % 2))
        for column, each in enumerate(_PARTS)
        for row, path in enumerate(photographs)
    ]
    for part in parts:
        yield InferenceRequest(image=part)
    for number in range(0, len(parts) // 2, 4):
        yield InferenceRequest(images=[parts[number], parts[-1 - number]])


def _part(path: Path, box: tuple[float, ...], brightness: float, *, mirrored: bool) -> bytes:
    with Image.open(path) as file:
        whole = file.convert("RGB")
    left, top, right, bottom = (
        round(share * edge) for share, edge in zip(box, (*whole.size, *whole.size), strict=True)
    )
    part = ImageEnhance.Brightness(whole.crop((left, top, right, bottom))).enhance(brightness)
    if mirrored:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    content = io.BytesIO()
    part.save(content, "PNG")
    return content.getvalue()


def _sounds() -> Iterator[InferenceRequest]:
    """Each voice alone, then two of different lengths in a batch."""
    voices = [path.read_bytes() for path in sorted((catalogue().folder / "calibration").glob("*.flac"))]
    for voice in voices:
        yield InferenceRequest(audio=voice)
    for number, voice in enumerate(voices):
        yield InferenceRequest(audios=[voice, voices[number - 2]])
