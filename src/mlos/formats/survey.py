"""Which model a repository folder holds, in the hub's layout: its format, its files, and that all are sound."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlos.errors import CorruptError, NotFoundError, RefusedError
from mlos.formats import gguf_parts, safetensors
from mlos.formats.dispatch import detect, named, verify
from mlos.formats.source import Source, quoted, shown
from mlos.formats.summary import Summary
from mlos.model.manifest import ModelFormat, normal_path

MAX_FILES = 100_000
MAX_DEPTH = 16
MAX_JSON = 1 << 25
"""Bytes of a JSON file that is read: shard indexes of the largest models have half as many."""
_PREFERENCE: tuple[ModelFormat, ...] = ("safetensors", "onnx", "gguf")
_INDEX = ".safetensors.index.json"


@dataclass(frozen=True)
class Survey:
    """The model of a folder. Paths are relative to the folder and sorted; ``summaries`` follows ``files``.

    ``ignored`` are model files of other formats (pickles too) and symbolic links: they are not verified, and
    nothing may load them.
    """

    format: ModelFormat
    files: tuple[Path, ...]
    summaries: tuple[Summary, ...]
    ignored: tuple[Path, ...] = ()


def survey(folder: Path) -> Survey:
    """Find the model in a repository folder and verify every file of it.

    SafeTensors are preferred to ONNX, and ONNX to GGUF; files of the other formats are ignored. Only regular
    files are looked at, links are not followed and hidden folders not entered. A sharded model's index must
    name shards that are there, and each tensor must be in the shard that the index names.

    Raises:
        NotFoundError: if there is no such folder.
        CorruptError: if a model file, an index or a configuration is damaged.
        RefusedError: if the folder brings code (``.py``, or ``auto_map`` in a configuration), has pickles
            alone, or has no model.
    """
    files, links = _walk(folder)
    for path in files:
        if path.suffix.lower() == ".py":
            raise RefusedError(
                f"{_name(path)}: the repository brings code: expected data files only, got a Python file",
                expected="data files only",
                got="a Python file",
                hint="use a model that the framework knows without remote code, or leave the .py files out",
            )
        if path.name.endswith("config.json"):
            _refuse_remote_code(folder, path)
    formats = {path: format_ for path in files if (format_ := _format(folder, path))}
    chosen = next((format_ for format_ in _PREFERENCE if format_ in formats.values()), None)
    if chosen is None:
        raise _nothing(folder, formats, links)
    kept = tuple(path for path in files if formats.get(path) == chosen)
    summaries = tuple(verify(folder / path, _name(path)) for path in kept)
    if chosen == "gguf":
        found = dict(zip((path.as_posix() for path in kept), summaries, strict=True))
        for name in found:
            gguf_parts.whole(found, gguf_parts.parts_of(name)[0])
    indexes = [path for path in files if path.name.endswith(_INDEX)] if chosen == "safetensors" else []
    if indexes:
        shards = {path: frozenset(safetensors.read(folder / path).tensors) for path in kept}
        for path in indexes:
            _check_index(folder, path, shards)
    beside = {
        path.parent / name
        for path, summary in zip(kept, summaries, strict=True)
        for name in summary.external_files
    }
    others = (path for path in formats if formats[path] != chosen and path not in beside)
    return Survey(chosen, kept, summaries, tuple(sorted([*others, *links])))


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Regular files, and links that look like model files or folders; both relative to ``folder``, sorted."""
    if not folder.is_dir():
        raise NotFoundError(f"{shown(str(folder))}: no such folder")
    files: list[Path] = []
    links: list[Path] = []
    pending: list[tuple[Path, int]] = [(Path(), 0)]
    seen = 0
    while pending:
        inside, depth = pending.pop()
        try:
            entries = list(os.scandir(folder / inside))
        except OSError as error:
            raise RefusedError(f"{_name(inside)} cannot be read: {error.strerror}") from error
        seen += len(entries)
        if seen > MAX_FILES or depth > MAX_DEPTH:
            raise RefusedError(
                f"{shown(str(folder))}: the folder is too large: expected at most {MAX_FILES} files in "
                f"{MAX_DEPTH} levels, got more",
                hint="name the folder of the model itself",
            )
        for entry in entries:
            path = inside / entry.name
            if entry.is_symlink():
                if named(path) or entry.is_dir():
                    links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                if not entry.name.startswith("."):
                    pending.append((path, depth + 1))
            elif entry.is_file(follow_symlinks=False):
                files.append(path)
    return sorted(files), sorted(links)


def _format(folder: Path, path: Path) -> ModelFormat | None:
    """The format of a file by content, else what its name claims; its verification settles the difference."""
    found, claimed = detect(folder / path), named(path)
    if found == "pytorch" and claimed in _PREFERENCE:
        verify(
            folder / path, _name(path)
        )  # a pickle under a safe format's name is refused, whatever else is here
    return found or claimed


def _refuse_remote_code(folder: Path, path: Path) -> None:
    """Refuse a configuration that points to Python code in the repository (Transformers' ``auto_map``)."""

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            if key == "auto_map" and value:
                raise RefusedError(
                    f"{_name(path)}: the model needs code from its repository: expected no auto_map, "
                    f"got {quoted(json.dumps(value))}",
                    field="auto_map",
                    expected="no auto_map",
                    got=shown(json.dumps(value)),
                    hint="use a model that the framework knows without remote code",
                )
        return dict(pairs)

    _read_json(folder, path, look)


def _check_index(folder: Path, path: Path, shards: dict[Path, frozenset[str]]) -> None:
    index = _read_json(folder, path, _unique)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise _wrong(
            path, "the index is wrong", "a weight_map of tensor names to file names", "another structure"
        )
    for tensor, shard in weight_map.items():
        if not normal_path(shard):
            raise _wrong(
                path, f"the shard of {quoted(tensor)} is unsafe", "a plain relative path", quoted(shard)
            )
        held = shards.get(path.parent / shard)
        if held is None:
            raise _wrong(path, f"the shard of {quoted(tensor)} is missing", f"a file {quoted(shard)}", "none")
        if tensor not in held:
            raise _wrong(
                path, f"tensor {quoted(tensor)} is not where the index says", f"it in {quoted(shard)}", "others"
            )


def _read_json(folder: Path, path: Path, hook: Any) -> Any:
    with Source(folder / path, _name(path)) as source:
        if source.size > MAX_JSON:
            raise source.refused(
                "it is too large", f"at most {MAX_JSON} bytes", f"{source.size} bytes", "shorten it"
            )
        data = source.read(0, source.size, "the text")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "it is not valid JSON", "JSON", shown(str(error))) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _nothing(folder: Path, formats: dict[Path, ModelFormat], links: list[Path]) -> RefusedError:
    if formats:
        pickled = sorted(formats)
        try:
            verify(folder / pickled[0], _name(pickled[0]))
        except RefusedError as refusal:
            return refusal
    if links:
        return RefusedError(
            f"{_name(links[0])}: links are not followed: expected model files, got a symbolic link",
            expected="model files",
            got="a symbolic link",
            hint="copy the folder with its links resolved: cp -rL FOLDER COPY",
        )
    return RefusedError(
        f"{shown(str(folder))}: no model in the folder: expected SafeTensors, ONNX or GGUF files, got none",
        expected="SafeTensors, ONNX or GGUF files",
        got="none",
        hint="name a folder in the hub's layout, or a single .onnx or .gguf file",
    )


def _wrong(path: Path, problem: str, expected: str, got: str) -> CorruptError:
    return CorruptError(
        f"{_name(path)}: {problem}: expected {expected}, got {got}",
        expected=expected,
        got=got,
        hint="fetch the whole repository again",
    )


def _name(path: Path) -> str:
    return shown(path.as_posix())
