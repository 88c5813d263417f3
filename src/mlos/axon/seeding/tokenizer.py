"""The tokenizer of a seeded model, written as the model's own repository would carry it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlos.axon.seeding.byte_level import save_byte_level
from mlos.axon.seeding.clip_bpe import clip_bpe
from mlos.axon.seeding.sentencepiece_bpe import save_sentencepiece, save_tokenizer_json
from mlos.axon.seeding.unigram import unigram
from mlos.axon.seeding.vocabulary import read_vocabulary
from mlos.axon.seeding.wordpiece import mpnet
from mlos.errors import MlosError


def save_tokenizer(recipe: Mapping[str, Any], carried: Mapping[str, Path], destination: Path) -> None:
    """Write the tokenizer of ``recipe``; ``carried`` are files of an installed distribution, by their names."""
    match recipe["kind"]:
        case "carried" if recipe.get("layout") == "mpnet":
            words = json.loads(carried["tokenizer.json"].read_bytes())
            save_json(mpnet(words), destination / "tokenizer.json")
            save_json(recipe["settings"], destination / "tokenizer_config.json")
        case "carried":
            for name, path in carried.items():
                _copy(name, path.read_bytes(), recipe["settings"], destination)
        case "synthetic" if recipe["model"] == "clip-bpe":
            save_json(json.loads(clip_bpe(recipe["size"])), destination / "tokenizer.json")
            save_json(recipe["settings"], destination / "tokenizer_config.json")
        case "synthetic":
            save_json(unigram(recipe["size"], recipe.get("layout", "t5")), destination / "tokenizer.json")
            save_json(recipe["settings"], destination / "tokenizer_config.json")
        case "gguf":
            (path,) = carried.values()
            vocabulary = read_vocabulary(path)
            if vocabulary.kind == "llama":
                save_sentencepiece(vocabulary, destination / "tokenizer.model")
                save_tokenizer_json(vocabulary, destination / "tokenizer.json")
            else:
                save_byte_level(vocabulary, recipe.get("layout"), destination)
            save_json(recipe["settings"], destination / "tokenizer_config.json")
        case kind:
            raise MlosError(f"a tokenizer of the kind {kind} cannot be made yet")


def save_json(data: Any, path: Path) -> None:
    """Write ``data`` as a hub's own files are written."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy(name: str, data: bytes, settings: dict[str, Any], destination: Path) -> None:
    """Write one of the tokenizer's files."""
    match name:
        case "tokenizer.json":
            # How long inputs may be and how they are padded is the caller's to say, not the vocabulary's.
            save_json(json.loads(data) | {"truncation": None, "padding": None}, destination / name)
        case "tokenizer_config.json":
            save_json(json.loads(data) | settings, destination / name)
        case _:
            (destination / name).write_bytes(data)
