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

from mlos.axon.seeding.layouts import LAYOUTS, SPACE


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


def unigram(size: int, layout: str = "t5") -> dict[str, Any]:
    """A tokenizer of ``size`` tokens in ``layout``, in the JSON form of the ``tokenizers`` library.

    The log probabilities fall as in Zipf's law: the more characters a piece has, and the rarer they are, the
    later it stands; so a text is cut into few pieces.
    """
    form, letters = LAYOUTS[layout], _letters()
    pieces = _syllables(size - len(form.special) - len(letters)) + letters
    vocabulary = [
        *([token, 0.0] for token in form.first),
        *([piece, round(-math.log(rank + 10), 4)] for rank, piece in enumerate(pieces)),
        *([token, 0.0] for token in form.last),
    ]
    numbers = {token: number for number, (token, _) in enumerate(vocabulary) if token in form.special}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": token in form.stripping,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token, number in numbers.items()
        ],
        "normalizer": form.normalizer(),
        "pre_tokenizer": form.cut(),
        "post_processor": form.post_processor(numbers),
        "decoder": form.decoder(),
        "model": {
            "type": "Unigram",
            "unk_id": numbers[form.unknown],
            "byte_fallback": False,
            "vocab": vocabulary,
        },
    }


def _syllables(number: int) -> list[str]:
    """``number`` pieces of two characters and more: syllables, the shortest and commonest first, then pairs.

    Each comes also as a word's beginning.
    """
    shapes = (
        itertools.product(_ONSETS, _VOWELS),
        itertools.product(_VOWELS, _CODAS),
        itertools.product(_ONSETS, _VOWELS, _CODAS),
    )
    parts = sorted(("".join(part) for part in itertools.chain.from_iterable(shapes)), key=len)
    pairs = map("".join, itertools.product(_ONSETS, _VOWELS, _ONSETS, _VOWELS))
    pieces: dict[str, None] = {}
    for part in itertools.chain(parts, pairs):
        pieces |= dict.fromkeys((SPACE + part, part))
        if len(pieces) >= number:
            break
    return list(pieces)[:number]


def _letters() -> list[str]:
    letters = [chr(code) for first, last in _ALPHABETS for code in range(first, last + 1)]
    return [SPACE, *(SPACE + each for each in letters if "A" <= each <= "Z"), *letters]
