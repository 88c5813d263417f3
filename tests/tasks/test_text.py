"""Tokens are those of the framework's tokenizer, number for number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tasks.conftest import WORDS, Package

from mlos.errors import RefusedError
from mlos.model import TensorSpec
from mlos.tasks.text import TextEncoder


def same_as_framework(package: Package, encoder: TextEncoder, texts: list[str], max_length: int) -> None:
    theirs = package.tokenizer(
        texts,
        padding="longest",
        truncation=True,
        max_length=max_length,
        return_tensors="np",
        return_token_type_ids=True,
    )
    ours = encoder.encode(texts)
    assert list(ours) == ["input_ids", "token_type_ids", "attention_mask"]
    for name, tensor in ours.items():
        assert tensor.dtype == np.int64
        np.testing.assert_array_equal(tensor, theirs[name])


@pytest.mark.parametrize(
    "texts",
    [
        ["The cat sat on a mat."],
        ["The CAT", "a dog runs in the rain, and it walking", "sun"],
        [""],
        ["", "the cat"],
        ["[MASK] cat [SEP] [CLS]", "x" * 300],
        ["é 你好 \u0000\u200b\t\n 😀"],
        ["the " * 500, "cat"],
    ],
)
def test_the_frameworks_tokens(package: Package, texts: list[str]) -> None:
    same_as_framework(package, TextEncoder(package.folder, package.manifest, "fill-mask"), texts, 16)
    same_as_framework(package, TextEncoder(package.folder, package.manifest, "embeddings"), texts, 8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS)).map(" ".join)), min_size=1, max_size=4
    )
)
def test_the_frameworks_tokens_for_any_text(package: Package, texts: list[str]) -> None:
    same_as_framework(package, TextEncoder(package.folder, package.manifest, "embeddings"), texts, 8)


def test_only_what_the_model_takes_is_made(package: Package) -> None:
    spec = TensorSpec(name="input_ids", dtype="INT32", shape=("batch", "sequence"))
    artifact = package.manifest.artifact.model_copy(update={"inputs": (spec,)})
    manifest = package.manifest.model_copy(update={"artifact": artifact})
    inputs = TextEncoder(package.folder, manifest, "fill-mask").encode(["the cat"])
    assert {name: tensor.dtype for name, tensor in inputs.items()} == {"input_ids": np.dtype(np.int32)}


def test_an_input_no_text_can_fill_is_refused(package: Package) -> None:
    spec = TensorSpec(name="pixel_values", dtype="FP32", shape=("batch", 3))
    artifact = package.manifest.artifact.model_copy(update={"inputs": (spec,)})
    manifest = package.manifest.model_copy(update={"artifact": artifact})
    with pytest.raises(RefusedError, match="cannot fill the model's input 'pixel_values'"):
        TextEncoder(package.folder, manifest, "embeddings")


def test_the_padding_token_may_be_named(package: Package, tmp_path: Path) -> None:
    shutil.copy(package.folder / "tokenizer.json", tmp_path)
    manifest = package.with_options("embeddings", pad_token="[UNK]")
    inputs = TextEncoder(tmp_path, manifest, "embeddings").encode(["the cat", "the"])
    assert inputs["input_ids"][1].tolist() == [2, 5, 3, 1]
    assert inputs["attention_mask"][1].tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("max_length", [None, 0, "8"])
def test_a_package_without_a_length_is_refused(package: Package, max_length: object) -> None:
    with pytest.raises(RefusedError, match="max_length"):
        TextEncoder(package.folder, package.with_options("embeddings", max_length=max_length), "embeddings")


def test_what_the_package_lacks_is_named(package: Package, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"tokenizer\.json"):
        TextEncoder(tmp_path, package.manifest, "embeddings")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RefusedError, match=r"tokenizer\.json"):
        TextEncoder(tmp_path, package.manifest, "embeddings")
    shutil.copy(package.folder / "tokenizer.json", tmp_path)
    with pytest.raises(RefusedError, match=r"config\.json"):
        TextEncoder(tmp_path, package.manifest, "embeddings")
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": None}))
    with pytest.raises(RefusedError, match="no padding token"):
        TextEncoder(tmp_path, package.manifest, "embeddings")
    with pytest.raises(RefusedError, match=r"no token '\[BLANK\]'"):
        TextEncoder(tmp_path, package.with_options("embeddings", pad_token="[BLANK]"), "embeddings")


@pytest.mark.parametrize("clean", [False, True])
def test_decoding_is_the_frameworks(package: Package, clean: bool) -> None:
    manifest = package.with_options("fill-mask", clean_up_tokenization_spaces=clean)
    encoder = TextEncoder(package.folder, manifest, "fill-mask")
    text = "[CLS] it isn ' t the cat ' s mat , don ' t ! we ' ve walk ##ing ' re ? [MASK] . [SEP]"
    tokens = encoder.tokenizer.encode(text, add_special_tokens=False).ids
    for skip in (False, True):
        theirs = package.tokenizer.decode(tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
        assert encoder.decode(tokens, skip_special_tokens=skip) == theirs
