"""Which format a file is of, and its verification by that format's reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlos.formats import gguf, onnx, pickle, safetensors
from mlos.formats.source import Source, quoted
from mlos.formats.summary import Summary
from mlos.model.manifest import ModelFormat

_DETECTORS: tuple[tuple[ModelFormat, Callable[[Source], bool]], ...] = (
    ("gguf", gguf.detect),
    ("safetensors", safetensors.detect),
    ("pytorch", pickle.detect),
    ("onnx", onnx.detect),
)
_SUFFIXES: dict[str, ModelFormat] = {
    ".safetensors": "safetensors",
    ".onnx": "onnx",
    ".gguf": "gguf",
    **dict.fromkeys(pickle.SUFFIXES, "pytorch"),
}
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer: the model itself was not fetched"),
    (b"<", "a web page or XML"),
    (b"{", "JSON"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file (Keras weights)"),
)


def detect(path: Path) -> ModelFormat | None:
    """The format of a file by its content, or by a pickle's usual suffix where the content says nothing.

    None means that it is no model file that MLOS knows. A format is recognised, not verified: a damaged file is
    still of its format.

    Raises:
        NotFoundError: if there is no such file.
        RefusedError: if it is not a regular file or cannot be opened.
    """
    with Source(path) as source:
        found = _by_content(source)
    suffixed = named(path)
    return found or (suffixed if suffixed == "pytorch" else None)


def named(path: Path) -> ModelFormat | None:
    """The format that a file's name claims."""
    return _SUFFIXES.get(path.suffix.lower())


def verify(path: Path, name: str | None = None) -> Summary:
    """Check a model file against its format, in checked pure Python, before any native parser sees it.

    ``name`` is what errors call the file, by default its file name. Time and memory are bounded whatever the
    file holds; tensor data is not read. A link as ``path`` itself is followed, no other is.

    Raises:
        NotFoundError: if there is no such file.
        CorruptError: if it breaks a rule of its format.
        RefusedError: if it is a pickle, of no known format, of another format than its name claims, or asks for
            what is not taken.
    """
    claimed = named(path)
    with Source(path, name) as source:
        found = _by_content(source)
        if found and claimed and found != claimed and "pytorch" not in (found, claimed):
            raise source.refused(
                "its name and its content differ", claimed, found, f"rename it if it is meant to be {found}"
            )
        if found is None and claimed in (None, "safetensors", "onnx", "gguf"):
            got = _describe(source)
            if claimed is None or got is not None:
                raise source.refused(
                    "it is not a model file",
                    claimed or "SafeTensors, ONNX or GGUF",
                    got or "an unknown format",
                    "fetch the model file itself",
                )
    match found or claimed:
        case "safetensors":
            return safetensors.verify(path, name)
        case "onnx":
            return onnx.verify(path, name)
        case "gguf":
            return gguf.verify(path, name)
        case _:
            raise pickle.refusal(path, name)


def _by_content(source: Source) -> ModelFormat | None:
    return next((format_ for format_, detects in _DETECTORS if detects(source)), None)


def _describe(source: Source) -> str | None:
    """What a file that is no model looks like, where that can be told."""
    if source.size == 0:
        return "an empty file"
    head = source.head(256)
    for start, kind in _OTHERS:
        if head.lstrip().startswith(start):
            return kind
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        return None
    printable = all(character.isprintable() or character in "\t\r\n" for character in text)
    return f"text: {quoted(text[:40])}" if printable else None
