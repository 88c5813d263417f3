"""The vocabulary in a GGUF file must spell as the framework's tokenizer of the same repository does."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_llama import TinyLlama, tiny_llama
from tokenizers import Tokenizer

from mlos.engines import Vocabulary, vocabulary_of
from mlos.engines.gguf_vocabulary import GgufVocabulary
from mlos.engines.llama_cpp_library import Model
from mlos.errors import RefusedError

TEXTS = [
    *(
        "Hello world",
        " Hello",
        "  two leading",
        "Hello  double",
        "trailing  ",
        "a\nb\n\nc",
        "\n",
        "tab\there",
        "",
    ),
    *(
        "naïve café",
        "e\u0301",
        "日本語のテキスト",
        "мир",
        "ನಮಸ್ಕಾರ",
        "\u00a0nbsp",
        "\u200bzero width",
        "ﬁ ligature",
    ),
    *(
        "😀 emoji 🤖 👩‍🚀",
        "x" * 50,
        "3.14159 12345",
        "def f(x):\n    return x + 1\n",
        "\r\nwin",
        "<0x0A>",
        "▁x",
        "\0",
    ),
    *("<|user|>\nHi</s>\n<|assistant|>\n", "</s> x</s></s>y", "<s>hi", "<unk>a", "a <s> b"),
]


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


@pytest.fixture(scope="module")
def vocabulary(llama: TinyLlama) -> Vocabulary:
    return vocabulary_of(llama.folder, llama.artifacts["Q4_K_M"])


@pytest.fixture(scope="module")
def framework(llama: TinyLlama) -> Tokenizer:
    return Tokenizer.from_file(str(llama.repository / "tokenizer.json"))


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_it_spells_as_the_framework(vocabulary: Vocabulary, framework: Tokenizer, text: str) -> None:
    assert (
        vocabulary.encode(text, control=True, begin=False)
        == framework.encode(text, add_special_tokens=False).ids
    )
    assert vocabulary.encode(text, control=True, begin=True)[0] == 1


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_it_spells_any_text_as_the_framework(text: str) -> None:
    llama = tiny_llama()
    expected = _framework(llama.repository / "tokenizer.json").encode(text, add_special_tokens=False).ids
    assert _vocabulary().encode(text, control=True, begin=False) == expected


def test_it_spells_as_the_vocabulary_it_was_made_of(vocabulary: Vocabulary) -> None:
    files = importlib.metadata.distribution("llama-cpp-converter").files or []
    (path,) = (Path(str(file.locate())) for file in files if file.name == "ggml-vocab-llama-spm.gguf")
    original = GgufVocabulary(Model(path, vocabulary_only=True))
    for text in TEXTS:
        assert vocabulary.encode(text, control=True, begin=True) == original.encode(
            text, control=True, begin=True
        )


def test_pieces_put_together_are_the_text(vocabulary: Vocabulary) -> None:
    for text in TEXTS[:-5]:
        pieces = b"".join(map(vocabulary.piece, vocabulary.encode(text, control=False, begin=True)))
        # A space before the text is the vocabulary's own, and it writes a space as that block.
        assert pieces.decode() == (f" {text}" if text else "").replace("▁", " ")


def test_control_tokens(vocabulary: Vocabulary) -> None:
    assert dict(vocabulary.control) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert (vocabulary.bos, vocabulary.eos) == ("<s>", "</s>")
    assert [vocabulary.piece(token) for token in (1, 2)] == [b"", b""]
    assert [token for token in range(32000) if vocabulary.ends(token)] == [2]
    assert 2 in vocabulary.encode("a</s>", control=True, begin=False)
    assert 2 not in vocabulary.encode("a</s>", control=False, begin=False)


def test_the_beginning_comes_once(vocabulary: Vocabulary) -> None:
    once = vocabulary.encode("<s>Hello", control=True, begin=True)
    assert once == vocabulary.encode("<s>Hello", control=True, begin=False)
    assert vocabulary.encode("", control=True, begin=True) == [1]


def test_the_template_is_the_repository_s(vocabulary: Vocabulary) -> None:
    assert vocabulary.chat_template is not None
    assert "<|assistant|>" in vocabulary.chat_template


def test_only_gguf_files_have_one(llama: TinyLlama) -> None:
    with pytest.raises(RefusedError, match="only a GGUF file"):
        vocabulary_of(llama.folder, llama.artifacts["F16"].model_copy(update={"format": "onnx"}))


@cache
def _framework(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


@cache
def _vocabulary() -> Vocabulary:
    llama = tiny_llama()
    return vocabulary_of(llama.folder, llama.artifacts["F16"])
