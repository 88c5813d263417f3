"""Nothing a person or a file says becomes a path outside its folder (T9)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mlos.errors import NotFoundError, UsageError
from mlos.store import InstallRecord, Store
from mlos.store.layout import Layout
from mlos.store.package import Ref

ROOT = Path("/somewhere/store")
LAYOUT = Layout(ROOT)
HOSTILE = st.one_of(
    st.text(),
    st.text(alphabet="abcdef0123456789", min_size=10, max_size=130),
    st.sampled_from(
        [
            "..",
            "../../../etc/passwd",
            "/etc/passwd",
            "hf/../../x",
            "a\0b",
            "\u2170" * 64,
            "\uff10" * 64,
            "a" * 64 + "\n",
            "A" * 64,
            "a" * 63 + "/",
            "\ud800",
        ]
    ),
)


@given(HOSTILE)
def test_a_reference_becomes_one_plain_file_name(reference: str) -> None:
    path = LAYOUT.ref(reference)
    assert path.parent == ROOT / "refs"
    assert re.fullmatch(r"[0-9a-f]{64}\.json", path.name, re.ASCII)


@given(HOSTILE, HOSTILE)
def test_different_references_have_different_files(one: str, two: str) -> None:
    assert (LAYOUT.ref(one) == LAYOUT.ref(two)) is (one == two)


@given(HOSTILE)
def test_only_digests_name_blobs_packages_leases_and_partials(text: str) -> None:
    for place, folder in (
        (LAYOUT.blob, "blobs/sha256"),
        (LAYOUT.package, "packages"),
        (LAYOUT.lease, "leases"),
        (LAYOUT.partial, "partial"),
    ):
        try:
            path = place(text)
        except UsageError as error:
            assert error.expected  # noqa: PT017  (most texts are refused, some are not)
        else:
            assert path == ROOT / folder / text
            assert re.fullmatch(r"[0-9a-f]{40,128}", text, re.ASCII)


@given(HOSTILE)
def test_a_reference_file_cannot_point_outside(text: str) -> None:
    record = InstallRecord(installed_at=datetime(2026, 1, 1, tzinfo=UTC), axon="0.1")
    try:
        ref = Ref(reference="hf/a/b@c", name="b", digest=text, record=record)
    except ValidationError:
        return
    assert LAYOUT.package(ref.digest).parent == ROOT / "packages"


@given(HOSTILE)
def test_any_query_is_answered(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "never created")
    with pytest.raises(NotFoundError) as missing:
        store.find(text)
    assert len(missing.value.message) < 2000
    assert not store.root.exists()


@pytest.mark.parametrize("key", ["", "..", "../x", "a" * 39, "a" * 64 + "\n", "A" * 64, "sha256:" + "a" * 64])
def test_a_partial_needs_a_digest(store: Store, key: str) -> None:
    with pytest.raises(UsageError), store.partial(key):
        pass
    assert not store.root.exists()
