"""What a GGUF file holds of its model's vocabulary, as far as a tokenizer can be made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mlos.errors import RefusedError
from mlos.formats import gguf

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4
"""Types of pieces, which GGUF numbers as SentencePiece does."""
_KINDS = ("llama", "gpt2")
_PREFIX = "tokenizer.ggml."
_LISTS = ("tokens", "token_type", "scores", "merges")
_PLACEHOLDER = re.compile(r"\[PAD\d+\]")
"""What llama.cpp's converter calls the rows of an embedding that have no token; no tokenizer knows them."""


@dataclass(frozen=True)
class Vocabulary:
    """The pieces in the order of their numbers, their types, and the numbers of three of them.

    ``kind`` is ``llama`` for SentencePiece's byte-pair encoding, whose pieces have scores, or ``gpt2`` for the
    one over bytes, which has a list of merges, and rules called ``pre`` for cutting a text before they are
    applied; the latter knows no unknown piece, and ``unknown`` is -1.
    """

    kind: str
    pieces: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    pre: str
    unknown: int
    bos: int
    eos: int


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file.

    Raises:
        RefusedError: if it is of another kind than the two byte-pair encodings, or no sound GGUF file.
    """
    metadata = gguf.verify(path, whole=[f"{_PREFIX}{name}" for name in _LISTS]).metadata

    def value(key: str) -> object:
        return metadata.get(f"{_PREFIX}{key}")

    def values(key: str) -> list[object]:
        found = value(key)
        return found if isinstance(found, list) else []

    def number(key: str, default: int) -> int:
        found = value(f"{key}_token_id")
        return found if isinstance(found, int) else default

    kind = value("model")
    if kind not in _KINDS:
        raise RefusedError(
            f"{path.name} holds a vocabulary that no tokenizer can be made of yet",
            field="tokenizer.ggml.model",
            expected=" or ".join(_KINDS),
            got=str(kind),
        )
    pieces = [str(piece) for piece in values("tokens")]
    while pieces and _PLACEHOLDER.fullmatch(pieces[-1]):
        pieces.pop()
    types = [int(str(each)) for each in values("token_type")][: len(pieces)]
    pairs = (str(merge).partition(" ") for merge in values("merges"))
    return Vocabulary(
        kind=str(kind),
        pieces=pieces,
        types=types,
        scores=[float(str(each)) for each in values("scores")][: len(pieces)],
        merges=[(left, right) for left, _, right in pairs],
        pre=str(value("pre")),
        unknown=number("unknown", types.index(UNKNOWN) if UNKNOWN in types else -1),
        bos=number("bos", 1),
        eos=number("eos", 2),
    )
