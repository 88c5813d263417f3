"""How published tokenizers of the unigram kind number their special tokens, and what they do around the pieces.

Each layout is that of one published ``tokenizer.json``, in the form in which the framework's own class of that
tokenizer builds it. One part cannot be had without the published file: the table of characters that
SentencePiece compiled from its rule ``nmt_nfkc``. Where the framework's class goes without the table, so does
the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SPACE = "▁"
_METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
_WORDS = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE]}
_QUOTES: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    {"type": "Replace", "pattern": {"String": "''"}, "content": '"'},
)
_NO_ACCENTS: tuple[dict[str, Any], ...] = ({"type": "NFKD"}, {"type": "StripAccents"})


@dataclass(frozen=True)
class Layout:
    """Special tokens by their place, and the steps of a tokenizer as its JSON has them.

    ``single`` and ``pair`` are what a text and a pair become: ``$A`` and ``$B`` are the texts, the rest special
    tokens, each with its type after a colon (0 if it is left out). ``stripping`` are special tokens that take
    the spaces before them.
    """

    first: tuple[str, ...]
    last: tuple[str, ...]
    unknown: str
    single: str
    pair: str
    stripping: tuple[str, ...] = ()
    normalizers: tuple[dict[str, Any], ...] = ()
    pre_tokenizer: Any = None

    @property
    def special(self) -> tuple[str, ...]:
        """All special tokens, in the order of their numbers."""
        return self.first + self.last

    def normalizer(self) -> dict[str, Any] | None:
        """What is done to a text before it is cut."""
        return {"type": "Sequence", "normalizers": list(self.normalizers)} if self.normalizers else None

    def post_processor(self, numbers: dict[str, int]) -> dict[str, Any]:
        """What puts special tokens around texts; ``numbers`` are those of the tokens."""
        used = [token for token in self.special if token in self.single.replace(":", " ").split()]
        return {
            "type": "TemplateProcessing",
            "single": [_template(part) for part in self.single.split()],
            "pair": [_template(part) for part in self.pair.split()],
            "special_tokens": {
                token: {"id": token, "ids": [numbers[token]], "tokens": [token]} for token in used
            },
        }

    def cut(self) -> Any:
        """What cuts a text into words."""
        return self.pre_tokenizer or _WORDS

    @staticmethod
    def decoder() -> dict[str, Any]:
        """What makes a text of pieces."""
        return dict(_METASPACE)


def _template(part: str) -> dict[str, Any]:
    token, _, kind = part.partition(":")
    name, content = ("Sequence", token[1:]) if token in ("$A", "$B") else ("SpecialToken", token)
    return {name: {"id": content, "type_id": int(kind or 0)}}


SENTINELS = 100
"""Special tokens ``<extra_id_N>``, the last of T5's vocabulary, in falling order."""

LAYOUTS = {
    "t5": Layout(
        first=("<pad>", "</s>", "<unk>"),
        last=tuple(f"<extra_id_{number}>" for number in reversed(range(SENTINELS))),
        unknown="<unk>",
        single="$A </s>",
        pair="$A </s> $B </s>",
    ),
    "albert": Layout(
        first=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
        last=(),
        unknown="<unk>",
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        stripping=("[MASK]",),
        normalizers=(*_QUOTES, *_NO_ACCENTS, {"type": "Lowercase"}),
    ),
    "xlnet": Layout(
        first=("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"),
        last=(),
        unknown="<unk>",
        single="$A <sep> <cls>:2",
        pair="$A <sep> $B:1 <sep>:1 <cls>:2",
        stripping=("<mask>",),
        normalizers=(*_QUOTES, *_NO_ACCENTS),
    ),
    "xlm-roberta": Layout(
        first=("<s>", "<pad>", "</s>", "<unk>"),
        last=("<mask>",),
        unknown="<unk>",
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        stripping=("<mask>",),
    ),
    "deberta-v3": Layout(
        first=("[PAD]", "[CLS]", "[SEP]", "[UNK]"),
        last=("[MASK]",),
        unknown="[UNK]",
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        normalizers=(
            {"type": "Replace", "pattern": {"Regex": r"\s{2,}|[\n\r\t]"}, "content": " "},
            {"type": "NFC"},
            {"type": "Strip", "strip_left": False, "strip_right": True},
        ),
        pre_tokenizer={"type": "Sequence", "pretokenizers": [_METASPACE]},
    ),
}
