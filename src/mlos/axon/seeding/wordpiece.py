"""BERT's words with the special tokens of another model, in its numbering."""

from __future__ import annotations

from typing import Any

_BEGIN, _PAD, _END, _NONE, _MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
_UNKNOWN = "[UNK]"


def mpnet(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """BERT's ``tokenizer.json`` as MPNet's.

    MPNet has four tokens before BERT's words and its mask behind them. ``<unk>`` is one of the four and never
    used: what is no word becomes BERT's own ``[UNK]``. A mask takes the spaces before it.
    """
    first = (_BEGIN, _PAD, _END, _NONE)
    words = tokenizer["model"]["vocab"]
    numbers = {token: number for number, token in enumerate((*first, *sorted(words, key=words.get), _MASK))}
    added = [
        {
            "id": numbers[token],
            "content": token,
            "single_word": False,
            "lstrip": token == _MASK,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in (_BEGIN, _PAD, _END, _UNKNOWN, _MASK)
    ]
    return tokenizer | {
        "added_tokens": added,
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [_END, numbers[_END]],
            "cls": [_BEGIN, numbers[_BEGIN]],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        "model": tokenizer["model"] | {"vocab": numbers},
        "truncation": None,
        "padding": None,
    }
