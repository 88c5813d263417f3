"""A tokenizer of byte-pair encoding over bytes in the hub's files, made of the vocabulary in a GGUF file.

The kind is GPT-2's (``tokenizer.ggml.model`` is ``gpt2``): the bytes of a text are written as 256 printable
letters, the text is cut by rules that differ from family to family, and the merges are applied within a cut,
the first of the list first. The GGUF file names the family's rules and does not hold them; here they stand as
the families' published ``tokenizer.json`` has them.

RoBERTa, BART and DeBERTa took over GPT-2's words and merges and numbered them anew, by how often each comes in
their own texts. That order is not to be had here: a layout has GPT-2's order with their special tokens around
it, so texts are cut into the same words and a word's number is another than the published one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mlos.axon.seeding.vocabulary import CONTROL, USER_DEFINED, Vocabulary
from mlos.errors import RefusedError

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA_3 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN_2 = _ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+")


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _cut(*patterns: str, digits: bool = False) -> Any:
    parts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    if digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@dataclass(frozen=True)
class _Rules:
    """How a family cuts a text, and what else of its tokenizer a GGUF file does not say."""

    cut: Callable[[], Any]
    begins: bool = False
    """Whether a sequence begins with the beginning token."""
    whole: bool = False
    """Whether a cut that is a word of the vocabulary is one token, whatever the merges make of it."""
    composed: bool = False
    """Whether letters and their accents are put together first."""
    listed: bool = False
    """Whether the published repository has ``vocab.json`` and ``merges.txt`` as well."""


_RULES = {
    "gpt-2": _Rules(_gpt2, listed=True),
    "llama-bpe": _Rules(lambda: _cut(_LLAMA_3), begins=True, whole=True),
    "qwen2": _Rules(lambda: _cut(_QWEN_2), composed=True, listed=True),
    "deepseek-coder": _Rules(lambda: _cut(*_DEEPSEEK_CODER, digits=True), begins=True),
}
"""By what GGUF calls them."""


@dataclass(frozen=True)
class _Layout:
    """A family's words in another numbering, or with other marks."""

    of: str = "gpt-2"
    """What GGUF calls the family."""
    marks: tuple[str, ...] = ()
    """What the vocabulary's last tokens are called instead."""
    first: tuple[str, ...] = ()
    """Tokens before the words."""
    last: tuple[str, ...] = ()
    """Tokens after them."""
    special: tuple[str, ...] = ()
    """Which of these are marks and no text."""
    mask: str = ""
    """The one that swallows the space before it."""
    around: tuple[str, str] | None = None
    """What begins and what ends a sequence."""


_MADE_UP = ("madeupword0000", "madeupword0001", "madeupword0002")
"""RoBERTa's vocabulary was filled up with them, so that its size is a multiple of eight and one."""
_LAYOUTS = {
    "roberta": _Layout(
        first=("<s>", "<pad>", "</s>", "<unk>"),
        last=(*_MADE_UP, "<mask>"),
        special=("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
        mask="<mask>",
        around=("<s>", "</s>"),
    ),
    "deberta": _Layout(
        first=("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
        last=(*_MADE_UP, "[MASK]"),
        special=("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
        mask="[MASK]",
        around=("[CLS]", "[SEP]"),
    ),
    "codegen": _Layout(  # CodeGen's and Phi's: runs of spaces and tabs after the words
        last=(*(" " * count for count in range(31, 1, -1)), *("\t" * count for count in range(9, 1, -1))),
    ),
    "llama-3.2": _Layout(  # and 3.1's: Llama 3's, some of whose reserved marks have got a meaning
        of="llama-bpe",
        marks=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>"),
            *("<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
            *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
        ),
    ),
}


def save_byte_level(vocabulary: Vocabulary, layout: str | None, destination: Path) -> None:
    """Write ``tokenizer.json``, and ``vocab.json`` and ``merges.txt`` where the published repository has them.

    ``layout`` renumbers GPT-2's words (``roberta``, ``deberta``, ``codegen``) or gives Llama 3's other marks
    (``llama-3.2``).

    Raises:
        RefusedError: if how the family cuts texts is not known here, or a layout is asked of other words.
    """
    rules = _RULES.get(vocabulary.pre)
    arranged = _LAYOUTS[layout] if layout else _Layout(of=vocabulary.pre)
    if rules is None or vocabulary.pre != arranged.of:
        raise RefusedError(
            f"no tokenizer can be made of a vocabulary of the kind {vocabulary.pre}"
            + (f" in the layout {layout}" if layout else ""),
            field="tokenizer.ggml.pre",
            expected=arranged.of if layout else " or ".join(_RULES),
            got=vocabulary.pre,
        )
    if arranged.marks:
        named = [*vocabulary.pieces[: -len(arranged.marks)], *arranged.marks]
        vocabulary = replace(vocabulary, pieces=named)
    kinds = dict(zip(vocabulary.pieces, vocabulary.types, strict=True))
    if arranged.around:  # where a text's end is said by a token of the layout, GPT-2's own is a word as others
        kinds = dict.fromkeys(kinds, 1)
    ends = (*arranged.first, *arranged.last)
    kinds |= {token: CONTROL if token in arranged.special else USER_DEFINED for token in ends}
    kinds |= dict.fromkeys(_MADE_UP, 1)
    pieces = [*arranged.first, *vocabulary.pieces, *arranged.last]
    words = {piece: number for number, piece in enumerate(pieces) if kinds[piece] == 1}
    if arranged.first:
        words |= {token: pieces.index(token) for token in ends}
    tokenizer = Tokenizer(
        models.BPE(vocab=words, merges=vocabulary.merges, fuse_unk=False, ignore_merges=rules.whole)
    )
    if rules.composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = rules.cut()
    tokenizer.decoder = decoders.ByteLevel()
    # Words that the families added are published as normalized, unlike marks. It matters to llama.cpp's
    # converter, which decodes all others: of letters that stand for a single byte it would make U+FFFD each.
    added = [
        AddedToken(
            piece,
            normalized=kinds[piece] == USER_DEFINED,
            special=kinds[piece] == CONTROL,
            lstrip=piece == arranged.mask,
        )
        for piece in pieces
        if kinds[piece] != 1
    ]
    tokenizer.add_tokens(added)
    tokenizer.post_processor = _around(vocabulary, rules, arranged, pieces)
    for number, piece in enumerate(pieces):
        assert tokenizer.token_to_id(piece) == number, f"{piece!r} is not number {number}"
    tokenizer.save(str(destination / "tokenizer.json"))
    if rules.listed:
        text = json.dumps(words, ensure_ascii=False, separators=(",", ":"))
        (destination / "vocab.json").write_text(text, encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in vocabulary.merges)]
        (destination / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _around(vocabulary: Vocabulary, rules: _Rules, layout: _Layout, pieces: list[str]) -> Any:
    """What comes before and after a text."""
    if layout.around:
        begin, end = layout.around
        numbered = [(each, pieces.index(each)) for each in layout.around]
        if layout.first == _LAYOUTS["roberta"].first:
            return processors.RobertaProcessing(numbered[1], numbered[0], add_prefix_space=False)
        return processors.TemplateProcessing(
            single=f"{begin} $A {end}", pair=f"{begin} $A {end} $B:1 {end}:1", special_tokens=numbered
        )
    trimmed = processors.ByteLevel(trim_offsets=False)
    if not rules.begins:
        return trimmed
    bos = vocabulary.pieces[vocabulary.bos]
    template = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocabulary.bos)]
    )
    return processors.Sequence([trimmed, template])
