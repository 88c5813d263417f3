"""A made-up vocabulary of word pieces, for models whose real one cannot be had.

It is as large as the real one and of the same kind (a unigram language model over pieces, ``▁`` for a space),
so that texts become as many tokens, of a few characters each. The pieces are the syllables that consonants
and vowels make, then every letter of the common alphabets, so that nothing of a usual text is lost. What a
piece means is nobody's: the weights are random too.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

SPACE = "▁"
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
SENTINELS = 100
"""Special tokens ``<extra_id_N>``, the last of the vocabulary, in falling order as T5 has them."""


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


_ONSETS = _words(
    "t s r n l d m c p b g f h v w k j y z th st tr pr ch sh pl cl gr fr br cr dr sp sl fl bl",
    "wh ph qu sc sk sm sn sw gl kn str thr scr x q",
)
_VOWELS = _words("e a o i u ea ou io ai ee ie oo y ue oa au")
_CODAS = _words(
    "n r s t l d m c p g b k f v w h y x z nt st ng ss ll nd ct rt ck th rs ns ts rd mp sh ch",
    "nk lt ld",
)
_ALPHABETS = (
    (0x21, 0x7E),  # ASCII without its controls and space
    (0xA1, 0x24F),  # Latin
    (0x300, 0x36F),  # accents that combine
    (0x370, 0x58F),  # Greek, Cyrillic, Armenian
    (0x5D0, 0x5F4),  # Hebrew
    (0x600, 0x6FF),  # Arabic
    (0x900, 0x97F),  # Devanagari
    (0xE00, 0xE5B),  # Thai
    (0x1E00, 0x1EFF),  # further Latin
    (0x2010, 0x2027),  # dashes, quotes, ellipsis
    (0x20A0, 0x20BF),  # currencies
    (0x2190, 0x2193),  # arrows
    (0x3001, 0x30FF),  # Hiragana, Katakana
)


def unigram(size: int) -> dict[str, Any]:
    """A tokenizer of ``size`` tokens, in the JSON form of the ``tokenizers`` library.

    ``<pad>``, ``</s>`` and ``<unk>`` are its first tokens, and ``</s>`` ends every text, as in T5. The log
    probabilities fall as in Zipf's law: the more characters a piece has, and the rarer they are, the later it
    stands; so a text is cut into few pieces.
    """
    special = [PAD, END, UNKNOWN]
    sentinels = [f"<extra_id_{number}>" for number in reversed(range(SENTINELS))]
    letters = _letters()
    pieces = _syllables()[: size - len(special) - len(sentinels) - len(letters)] + letters
    vocabulary = [
        *([token, 0.0] for token in special),
        *([piece, round(-math.log(rank + 10), 4)] for rank, piece in enumerate(pieces)),
        *([token, 0.0] for token in sentinels),
    ]
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, (token, _) in enumerate(vocabulary)
            if token in special or token in sentinels
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "special_tokens": {END: {"id": END, "ids": [special.index(END)], "tokens": [END]}},
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": special.index(UNKNOWN),
            "byte_fallback": False,
            "vocab": vocabulary,
        },
    }


def _syllables() -> list[str]:
    """Pieces of two characters and more, the shortest and commonest first, each also as a word's beginning."""
    shapes = (
        itertools.product(_ONSETS, _VOWELS),
        itertools.product(_VOWELS, _CODAS),
        itertools.product(_ONSETS, _VOWELS, _CODAS),
    )
    parts = ["".join(part) for part in itertools.chain.from_iterable(shapes)]
    pieces = itertools.chain.from_iterable((SPACE + part, part) for part in sorted(parts, key=len))
    return list(dict.fromkeys(pieces))


def _letters() -> list[str]:
    letters = [chr(code) for first, last in _ALPHABETS for code in range(first, last + 1)]
    return [SPACE, *(SPACE + each for each in letters if "A" <= each <= "Z"), *letters]
