"""A made-up vocabulary of CLIP's kind: byte-pair encoding over bytes whose words end in ``</w>``.

CLIP's own 49408 tokens cannot be had without its repository. These stand in the same places (the bytes, the
bytes that end a word, what merges make, the marks of start and end) and texts go through the same steps. The
pieces are short runs of letters; what one means is nobody's: the weights are random too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
_VOWELS = "eaoiu"
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clip_bpe(size: int) -> str:
    """A tokenizer of ``size`` tokens, in the JSON form of the ``tokenizers`` library."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet + [letter + WORD_END for letter in alphabet]
    merges = list(itertools.islice(_merges(), size - len(letters) - 2))
    pieces = [*letters, *(left + right for left, right in merges), START, END]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=numbers, merges=merges, unk_token=END, end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, numbers[END]), (START, numbers[START]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    text: str = tokenizer.to_str()
    return text


def _merges() -> Iterator[tuple[str, str]]:
    """Every two and three letters, then four in which vowels alternate; each also at a word's end.

    What a pair begins with was made before it.
    """
    consonants = [letter for letter in _LETTERS if letter not in _VOWELS]
    for parts in itertools.chain(
        itertools.product(_LETTERS, repeat=2),
        itertools.product(_LETTERS, repeat=3),
        itertools.product(consonants, _VOWELS, consonants, _VOWELS),
    ):
        *first, last = parts
        yield "".join(first), last
        yield "".join(first), last + WORD_END
