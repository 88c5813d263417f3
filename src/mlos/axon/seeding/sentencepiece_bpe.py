"""A tokenizer in the hub's files, made of the vocabulary in a GGUF file.

The kind is SentencePiece's byte-pair encoding with byte fallback, as the models of the Llama family have it
(``tokenizer.ggml.model`` is ``llama``). SentencePiece merges, of all neighbours that together are a piece, the
pair whose piece has the highest score; a list of merges in that order does the same. Two files result:
``tokenizer.model`` in SentencePiece's own format, which llama.cpp's converter reads, and ``tokenizer.json``,
which the framework reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from mlos.axon.seeding.vocabulary import CONTROL, UNKNOWN, Vocabulary

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a space."""


def save_sentencepiece(vocabulary: Vocabulary, path: Path) -> None:
    """Write ``tokenizer.model``."""
    sentencepiece: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = sentencepiece.ModelProto()
    for piece, score, kind in zip(vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = sentencepiece.TrainerSpec.BPE
    model.trainer_spec.vocab_size = len(vocabulary.pieces)
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.unk_id = vocabulary.unknown
    model.trainer_spec.bos_id = vocabulary.bos
    model.trainer_spec.eos_id = vocabulary.eos
    model.trainer_spec.pad_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    path.write_bytes(model.SerializeToString(deterministic=True))


def save_tokenizer_json(vocabulary: Vocabulary, path: Path) -> None:
    """Write ``tokenizer.json``: a space before the text and before whatever follows a control token."""
    numbers = {piece: number for number, piece in enumerate(vocabulary.pieces)}
    unknown, bos = vocabulary.pieces[vocabulary.unknown], vocabulary.pieces[vocabulary.bos]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=numbers,
            merges=_merges(vocabulary, numbers),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary.bos)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, normalized=False, special=True)
            for piece, kind in zip(vocabulary.pieces, vocabulary.types, strict=True)
            if kind in (UNKNOWN, CONTROL)
        ]
    )
    tokenizer.save(str(path))


def _merges(vocabulary: Vocabulary, numbers: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, the highest score first; among equals, the first in number."""
    ranked: list[tuple[float, int, int, int, tuple[str, str]]] = []
    for number, piece in enumerate(vocabulary.pieces):
        for at in range(1, len(piece)):
            left, right = numbers.get(piece[:at]), numbers.get(piece[at:])
            if left is not None and right is not None:
                ranked.append((-vocabulary.scores[number], left, right, number, (piece[:at], piece[at:])))
    return [pair for *_, pair in sorted(ranked)]
