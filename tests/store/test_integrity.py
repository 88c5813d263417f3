"""What was changed behind the store's back is named, and an install repairs it (F06, F32, T17)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mlos.errors import CorruptError, NotFoundError, RefusedError
from mlos.model import Manifest
from mlos.store import Collected, Fault, Package, Store, examine, read_manifest

Install = Callable[..., Package]
Describe = Callable[..., Manifest]

GRAPH = hashlib.sha256(b"a graph").hexdigest()


def flip(path: Path) -> None:
    """Change one bit of a file in place, as a failing disk would: neither length nor inode changes."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def only_ref(store: Store) -> Path:
    return next((store.root / "refs").iterdir())


def test_a_flipped_bit_in_a_blob_is_named_and_repaired(store: Store, install: Install) -> None:
    one = install(store, repository="org/one")
    two = install(store, {"weights/model.onnx": b"a graph"}, repository="org/two")
    blob = store.root / "blobs" / "sha256" / GRAPH
    with one.path("model.onnx").open("rb") as running:
        flip(blob)
        wrong = hashlib.sha256(b"` graph").hexdigest()

        assert store.verify(one) == (Fault("model.onnx", "changed", GRAPH, wrong),)
        assert store.verify(two) == (Fault("weights/model.onnx", "changed", GRAPH, wrong),)
        with pytest.raises(CorruptError, match=r"file model\.onnx is changed") as corrupt:
            store.check(one)
        assert (corrupt.value.field, corrupt.value.expected, corrupt.value.got) == ("model.onnx", GRAPH, wrong)
        assert corrupt.value.exit_status == 4

        assert store.verify(install(store, repository="org/one")) == ()
        assert store.verify(two) == (), "the other package still shares the corrupt file"
        assert running.read() == b"` graph", "a file in use was changed"
    assert blob.samefile(one.path("model.onnx"))
    assert blob.samefile(two.path("weights/model.onnx"))


def _delete(package: Package) -> None:
    package.path("model.onnx").unlink()


def _add(package: Package) -> None:
    (package.folder / "golden" / "extra.py").write_text("import os")


def _rename(package: Package) -> None:
    package.path("tokenizer.json").rename(package.folder / "tokenizer.model")


def _link(package: Package) -> None:
    package.path("model.onnx").rename(package.folder.parent / "elsewhere")
    package.path("model.onnx").symlink_to(package.folder.parent / "elsewhere")


def _link_folder(package: Package) -> None:
    package.path("golden").rename(package.folder.parent / "elsewhere")
    package.path("golden").symlink_to(package.folder.parent / "elsewhere")


def _empty_folder(package: Package) -> None:
    (package.folder / "a" / "b").mkdir(parents=True)


def _folder_for_file(package: Package) -> None:
    package.path("model.onnx").unlink()
    package.path("model.onnx").mkdir()
    (package.folder / "model.onnx" / "inner").write_text("x")


def _pipe(package: Package) -> None:
    package.path("model.onnx").unlink()
    os.mkfifo(package.path("model.onnx"))


@pytest.mark.parametrize(
    ("damage", "faults"),
    [
        (_delete, {("model.onnx", "missing")}),
        (_add, {("golden/extra.py", "added")}),
        (_rename, {("tokenizer.json", "missing"), ("tokenizer.model", "added")}),
        (_link, {("model.onnx", "changed")}),
        (_link_folder, {("golden/record.json", "missing"), ("golden", "added")}),
        (_empty_folder, {("a/b", "added")}),
        (_folder_for_file, {("model.onnx", "missing"), ("model.onnx/inner", "added")}),
        (_pipe, {("model.onnx", "changed")}),
    ],
)
def test_every_difference_is_named_and_repaired(
    store: Store, install: Install, damage: Callable[[Package], None], faults: set[tuple[str, str]]
) -> None:
    package = install(store)
    damage(package)

    assert {(fault.path, fault.problem) for fault in store.verify(package)} == faults
    with pytest.raises(CorruptError):
        store.check(package)
    assert store.verify(install(store)) == ()


def test_check_counts_what_it_does_not_name(store: Store, install: Install) -> None:
    package = install(store)
    _rename(package)
    with pytest.raises(CorruptError, match=r"tokenizer\.json is missing, and 1 more"):
        store.check(package)


def test_a_blob_that_is_another_file_than_the_packages_is_checked_too(store: Store, install: Install) -> None:
    package = install(store)
    blob = store.root / "blobs" / "sha256" / GRAPH
    blob.unlink()
    assert store.verify(package) == (), "the package does not need the blob's name"

    blob.write_bytes(b"other")
    assert [(fault.path, fault.problem) for fault in store.verify(package)] == [
        (f"blobs/sha256/{GRAPH}", "changed")
    ]

    blob.unlink()
    blob.mkdir()
    assert [fault.problem for fault in store.verify(package)] == ["changed"]
    assert store.verify(install(store)) == ()
    assert blob.samefile(package.path("model.onnx"))


def test_a_store_copied_without_its_hard_links_is_sound(store: Store, install: Install, tmp_path: Path) -> None:
    install(store)
    shutil.copytree(store.root, tmp_path / "copy")
    copy = Store(tmp_path / "copy")

    package = copy.find("bert")
    assert copy.verify(package) == ()
    assert copy.gc().files == 4, "blobs without a package are of no use"
    assert copy.verify(install(copy)) == ()


def _flip_manifest(package: Package) -> None:
    flip(package.folder / "manifest.json")


def _delete_manifest(package: Package) -> None:
    (package.folder / "manifest.json").unlink()


def _delete_folder(package: Package) -> None:
    shutil.rmtree(package.folder)


def _file_for_folder(package: Package) -> None:
    shutil.rmtree(package.folder)
    package.folder.write_text("not a folder")


@pytest.mark.parametrize("damage", [_flip_manifest, _delete_manifest, _delete_folder, _file_for_folder])
def test_a_reference_without_its_manifest_is_reported_repaired_and_removable(
    store: Store, install: Install, damage: Callable[[Package], None]
) -> None:
    package = install(store)
    other = install(store, {"model.onnx": b"1"}, name="minilm", repository="org/minilm")
    damage(package)

    assert [item.name for item in store.packages()] == ["minilm"]
    (broken,) = store.broken()
    assert (broken.reference, broken.name, broken.digest) == (package.reference, "bert", package.digest)
    with pytest.raises(CorruptError, match=r"manifest\.json") as corrupt:
        store.find("bert")
    assert corrupt.value.hint == f"axon install {package.reference}"
    assert store.verify(package)[0].path == "manifest.json"

    repaired = install(store)
    assert store.verify(repaired) == ()
    assert store.broken() == []

    damage(package)
    assert store.remove("bert").reference == package.reference
    assert store.broken() == []
    store.gc()
    assert [path.name for path in (store.root / "packages").iterdir() if path.is_dir()] == [other.digest]


def test_a_broken_package_is_not_hidden_by_an_older_one_of_its_name(store: Store, install: Install) -> None:
    install(store, {"model.onnx": b"1"}, commit="c1", minute=1)
    newest = install(store, {"model.onnx": b"2"}, commit="c2", minute=2)
    _flip_manifest(newest)

    for query in ("bert", "hf/org/bert-base", "org/bert-base", newest.digest[:12]):
        with pytest.raises(CorruptError):
            store.find(query)
    assert store.find("hf/org/bert-base@c1").owns_name is False


def test_a_package_of_a_newer_schema_is_refused_with_the_way_out(
    store: Store, install: Install, describe: Describe
) -> None:
    package = install(store)
    newer = json.dumps(json.loads(package.manifest.canonical()) | {"schema_version": 99, "novelty": 1}).encode()
    digest = hashlib.sha256(newer).hexdigest()
    folder = package.folder.rename(package.folder.with_name(digest))
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(newer)
    only_ref(store).write_text(only_ref(store).read_text().replace(package.digest, digest))

    assert store.packages() == []
    with pytest.raises(RefusedError, match="schema 99") as refused:
        store.find("bert")
    assert "upgrade MLOS" in str(refused.value.hint)
    assert refused.value.exit_status == 4
    store.gc()
    assert folder.exists(), "a package that is only too new was collected"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"digest": "../../etc"}'])
def test_an_unreadable_reference_is_listed_and_removed_by_its_file(
    store: Store, install: Install, content: bytes
) -> None:
    package = install(store)
    only_ref(store).write_bytes(content)

    (broken,) = store.broken()
    assert broken.reference == f"refs/{only_ref(store).name}"
    assert broken.error.field == broken.reference
    assert [fault.path for fault in store.verify(package)] == [broken.reference]
    with pytest.raises(CorruptError):
        store.find("hf/org/bert-base@c1")

    store.remove(broken.reference)
    assert store.broken() == []
    with pytest.raises(NotFoundError):
        store.find("hf/org/bert-base@c1")


def test_a_reference_that_says_something_else_is_broken(store: Store, install: Install) -> None:
    package = install(store)
    ref = only_ref(store)
    text = ref.read_text()

    ref.write_text(text.replace('"bert"', '"other"'))
    assert "names another package" in store.broken()[0].error.message
    assert [fault.path for fault in store.verify(package)] == [f"refs/{ref.name}"]

    ref.write_text(text.replace("bert-base@c1", "bert-base@c2"))
    assert "another reference" in store.broken()[0].error.message

    ref.unlink()
    ref.mkdir()
    assert "cannot be read" in store.broken()[0].error.message


def test_another_package_under_the_same_reference_supersedes_the_first(store: Store, install: Install) -> None:
    first = install(store, {"model.onnx": b"1"}, minute=1)
    second = install(store, {"model.onnx": b"2"}, minute=2)

    assert [item.digest for item in store.packages()] == [second.digest]
    assert store.verify(first) == ()
    assert store.gc().files == 2
    assert not first.folder.exists()
    assert store.verify(second) == ()


def test_examine_needs_nothing_but_the_folder(store: Store, install: Install, tmp_path: Path) -> None:
    package = install(store)
    subprocess.run(["cp", "-r", package.folder, tmp_path / "alone"], check=True)

    manifest = read_manifest(tmp_path / "alone", package.digest)
    assert manifest == package.manifest
    assert examine(tmp_path / "alone", manifest, package.digest) == ()
    assert [fault.problem for fault in examine(tmp_path / "nothing", manifest, package.digest)] == [
        "missing"
    ] * 4
    with pytest.raises(CorruptError):
        read_manifest(tmp_path / "alone", "0" * 64)


def test_names_that_are_no_text_can_be_reported(store: Store, install: Install) -> None:
    package = install(store)
    (package.folder / os.fsdecode(b"bad\xff")).write_text("x")

    (fault,) = store.verify(package)
    assert fault == Fault("bad\\xff", "added", None, "a file")
    assert store.gc() == Collected(0, 0)
