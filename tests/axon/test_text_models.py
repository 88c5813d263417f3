"""Encoders of texts with tokenizers of their own kinds: as the framework has them, and wrong ones are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.small import Small
from tokenizers import Tokenizer

from mlos.axon.convert.family import load_tokenizer
from mlos.axon.seeding.unigram import unigram
from mlos.catalogue import catalogue
from mlos.errors import ParityError
from mlos.model import InferenceRequest
from mlos.tasks import Limits
from mlos.tasks.embeddings import Embeddings

UNIGRAM = {"albert": 30_000, "xlm-roberta": 250_002, "deberta-v3": 128_001}
LAYOUTS = (*UNIGRAM, "mpnet", "deberta")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_framework_leaves_the_tokenizer_as_it_was_written(small: Small, name: str) -> None:
    """Its classes build normalizers and templates of their own: those of the layout."""
    written = Tokenizer.from_file(str(small.repository(name) / "tokenizer.json"))
    loaded = load_tokenizer(small.repository(name)).backend_tokenizer
    assert written.get_vocab() == loaded.get_vocab()
    for text in ("", "Two  engineers\ttimed\n``the same'' answer twice. ", "Ça coûte 5 €, naïve?", "日本 x"):
        assert written.encode(text).ids == loaded.encode(text).ids
        if name in UNIGRAM:
            assert written.encode(text, "Yes.").type_ids == loaded.encode(text, "Yes.").type_ids


@pytest.mark.parametrize(("layout", "size"), UNIGRAM.items())
def test_a_made_up_vocabulary_has_its_size_and_its_mask(layout: str, size: int) -> None:
    made = unigram(size, layout)
    pieces = [piece for piece, _ in made["model"]["vocab"]]
    assert len(set(pieces)) == size
    added = {token["content"]: token["id"] for token in made["added_tokens"]}
    assert all(pieces[number] == token for token, number in added.items())
    mask = "<mask>" if layout == "xlm-roberta" else "[MASK]"
    assert added[mask] == (4 if layout == "albert" else size - 1)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if "embeddings" in catalogue().entries[name].tasks])
@pytest.mark.parametrize("text", ["", " ", "word " * 20_000, "a" * 100_000, "\u6f22" * 30_000])
def test_texts_of_no_word_and_of_very_many_are_the_frameworks(
    small: Small, tmp_path: Path, name: str, text: str
) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    draft = candidate.draft()
    inputs = Embeddings(candidate.folder, draft, Limits()).preprocess(InferenceRequest(text=text)).inputs
    wanted = load_tokenizer(small.repository(name))(text, truncation=True, max_length=512)
    assert inputs["input_ids"].tolist() == [wanted["input_ids"]]
    assert inputs["attention_mask"].tolist() == [wanted["attention_mask"]]


def edit(path: Path, change: Any) -> None:
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data))


def test_the_wrong_words_fail_the_gate(small: Small, tmp_path: Path) -> None:
    """MPNet asked with BERT's own numbers of its words."""
    candidate = small.candidate("mpnet", tmp_path / "candidate")

    def shift(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        words = [word for word in vocabulary if vocabulary[word] >= 200 and word != "<mask>"]
        numbers = [vocabulary[word] for word in words]
        vocabulary |= dict(zip(words, numbers[-4:] + numbers[:-4], strict=True))

    edit(candidate.folder / "tokenizer.json", shift)
    with pytest.raises(ParityError, match="wrong tokenizer"):
        candidate.prove()


def test_without_its_normalizer_albert_fails_the_gate(small: Small, tmp_path: Path) -> None:
    candidate = small.candidate("albert", tmp_path / "candidate")
    edit(candidate.folder / "tokenizer.json", lambda data: data.update(normalizer=None))
    with pytest.raises(ParityError, match="wrong tokenizer"):
        candidate.prove()
