"""GGUF models in parts: files ``NAME-00001-of-00003.gguf``, of which llama.cpp opens the first.

Format: llama.cpp's ``gguf-split``. Each part says which it is (``split.no``, from 0), of how many
(``split.count``), and how many tensors all have together (``split.tensors.count``); what the model says about
itself stands in the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from mlos.errors import CorruptError
from mlos.formats.source import shown
from mlos.formats.summary import Summary

_PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def parts_of(path: str) -> tuple[str, ...]:
    """The paths of all parts of the model that ``path`` is a part of, the first one first.

    A file that is not called like a part stands alone.
    """
    named = _PART.fullmatch(path)
    count = int(named[3]) if named else 0
    if named is None or not 1 <= int(named[2]) <= count:
        return (path,)
    return tuple(f"{named[1]}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def whole(summaries: Mapping[str, Summary], path: str) -> Summary:
    """What the model of which ``path`` is the first part holds in all its parts.

    ``summaries`` are those of the verified files there are, by path.

    Raises:
        CorruptError: if a part is missing, is another than its name says, or lacks tensors.
    """
    names = parts_of(path)
    missing = next((name for name in names if name not in summaries), None)
    if missing is not None:
        raise _wrong(path, "a part is missing", missing, "none")
    parts = [summaries[name] for name in names]
    for at, (name, part) in enumerate(zip(names, parts, strict=True)):
        said = part.metadata.get(_NUMBER, 0), part.metadata.get(_COUNT, 1)
        if said[1] in (0, 1) and len(names) == 1:
            continue
        if said != (at, len(names)):
            raise _wrong(
                name,
                "it is another part than its name says",
                f"{_NUMBER} {at} and {_COUNT} {len(names)}",
                f"{said[0]} and {said[1]}",
            )
    tensors = sum(part.tensors for part in parts)
    declared = parts[0].metadata.get(_TENSORS, tensors)
    if len(parts) > 1 and declared != tensors:
        raise _wrong(path, "its parts lack tensors", f"{declared} in all parts", str(tensors))
    types: dict[str, int] = {}
    for part in parts:
        for kind, count in part.element_types.items():
            types[kind] = types.get(kind, 0) + count
    parameters = sum(part.parameters for part in parts)
    return replace(parts[0], tensors=tensors, parameters=parameters, element_types=types)


def _wrong(path: str, problem: str, expected: str, got: str) -> CorruptError:
    return CorruptError(
        f"{shown(path)}: {problem}: expected {shown(expected)}, got {shown(got)}",
        expected=shown(expected),
        got=shown(got),
        hint="fetch all parts again, under their own names, into one folder",
    )
