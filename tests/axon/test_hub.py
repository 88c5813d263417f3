"""The hub source against a hub that fails on purpose (F06, F07, F27, T7, T9, T10, T16)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.axon.conftest import CONFIG, WEIGHTS
from tests.axon.hub_server import FaultKind, HubServer, Repository

from mlos.axon.sources.download import Patience
from mlos.axon.sources.hub import HubSource
from mlos.console import Console
from mlos.errors import AuthenticationError, CorruptError, HubError, MlosError, NotFoundError, RefusedError
from mlos.model import Reference
from mlos.store import Store

IMPATIENT = Patience(retries=3, first_wait=0.01, longest_wait=0.02, longest_retry_after=5, stall=0.5)
MODEL = Reference.parse("hf/org/model@latest")
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


def fetch(store: Store, console: Console, folder: Path, reference: Reference = MODEL) -> Path:
    """Resolve and fetch as an install does."""
    source = HubSource(IMPATIENT)
    folder.mkdir(exist_ok=True)
    source.fetch(source.resolve(reference), folder, store, console)
    return folder


def leave_partial(store: Store, data: bytes) -> None:
    """As a killed install leaves one."""
    with store.partial(DIGEST) as path:
        path.write_bytes(data)


def partials(store: Store) -> list[Path]:
    folder = store.root / "partial"
    return sorted(folder.iterdir()) if folder.exists() else []


def test_latest_and_a_tag_resolve_to_the_commit_which_is_locked(hub: HubServer) -> None:
    commit = hub.repositories["org/model"].commit
    for text in ("hf/org/model", "hf/org/model@latest", "hf/org/model@v1.0", f"hf://org/model@{commit}"):
        resolution = HubSource(IMPATIENT).resolve(Reference.parse(text))
        assert resolution.commit == commit
        assert str(resolution.reference) == f"hf/org/model@{commit}"
    assert resolution.licence == "apache-2.0"
    assert resolution.weights == "hub"


def test_files_arrive_whole_and_code_is_never_asked_for(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    folder = fetch(store, console, tmp_path / "files")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (folder / "config.json").read_bytes() == CONFIG
    assert hub.requests("train.py") == []
    assert partials(store) == []
    commit = hub.repositories["org/model"].commit
    assert all(f"/resolve/{commit}/" in seen.path for seen in hub.requests("/resolve/"))


def test_the_token_goes_to_the_hub_and_never_to_where_it_redirects(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.repositories["org/model"].token = "hf_canary"
    fetch(store, console, tmp_path / "files")
    assert all(seen.headers["authorization"] == "Bearer hf_canary" for seen in hub.requests("/resolve/", "hub"))
    answered = hub.requests("", "cdn")
    assert answered
    assert not any("hf_canary" in value for seen in answered for value in seen.headers.values())


def test_the_token_does_not_follow_a_redirect_of_the_api_itself(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    hub.fail("redirect", "hub:/api/models/org/model", location=f"{hub.cdn_url}/api/models/org/model")
    with pytest.raises(MlosError):
        HubSource(IMPATIENT).resolve(MODEL)
    answered = hub.requests("/api/", "cdn")
    assert answered
    assert not any("hf_canary" in value for seen in answered for value in seen.headers.values())


def test_redirects_that_turn_in_a_circle_or_leave_http_are_not_followed(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    hub.fail("redirect", "hub:/org/model/resolve", location="/org/model/resolve/main/config.json", times=99)
    with pytest.raises(HubError, match="redirects more than"):
        fetch(store, console, tmp_path / "files")
    hub.faults.clear()
    hub.fail("redirect", "hub:/org/model/resolve", location="file:///etc/passwd")
    with pytest.raises(HubError, match="not followed"):
        fetch(store, console, tmp_path / "files")


def test_a_partial_file_is_continued_by_range(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    leave_partial(store, WEIGHTS[:700_000])
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert [seen.headers.get("range") for seen in hub.requests(DIGEST, "cdn")] == ["bytes=700000-"]


def test_a_whole_partial_file_is_checked_and_not_asked_for_again(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    leave_partial(store, WEIGHTS)
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.requests(DIGEST, "cdn") == []


@pytest.mark.parametrize("old", [b"\0" * 700_000, b"\0" * len(WEIGHTS), WEIGHTS + b"more"])
def test_a_partial_file_of_other_content_starts_again(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, old: bytes
) -> None:
    leave_partial(store, old)
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.requests(DIGEST, "cdn")[-1].headers.get("range") is None


def test_content_that_changes_in_the_middle_starts_again(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    other = bytes(reversed(WEIGHTS))
    hub.fail("cut", "cdn:", at=400_000, times=1)
    hub.fail("content", "cdn:", body=other, times=1)
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [seen.headers.get("range") for seen in hub.requests(DIGEST, "cdn")]
    assert ranges == [None, "bytes=400000-", None]


def test_a_server_without_ranges_sends_everything_again(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    leave_partial(store, WEIGHTS[:1000])
    hub.fail("no-range", "cdn:")
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("kind", ["cut", "stall", "short"])
def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, kind: FaultKind
) -> None:
    hub.fail(kind, "cdn:", at=400_000, times=2)
    folder = fetch(store, console, tmp_path / "files")
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [seen.headers.get("range") for seen in hub.requests(DIGEST, "cdn")]
    assert ranges == [None, "bytes=400000-", "bytes=800000-"]


@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_connection_that_keeps_breaking_ends_in_an_error_and_keeps_what_came(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, kind: FaultKind
) -> None:
    hub.fail(kind, "cdn:", at=10, times=None)
    with pytest.raises(
        HubError, match=r"model.safetensors: the connection failed after \d+ of 1048576 bytes"
    ) as raised:
        fetch(store, console, tmp_path / "files")
    assert "continues" in (raised.value.hint or "")
    assert len(hub.requests(DIGEST, "cdn")) == 1 + IMPATIENT.retries
    assert not (tmp_path / "files" / "model.safetensors").exists()
    with store.partial(DIGEST) as path:
        assert WEIGHTS.startswith(path.read_bytes())
        assert path.stat().st_size > 0


@pytest.mark.parametrize(
    ("kind", "got"),
    [("flip", "SHA-256"), ("longer", "more"), ("html", "an HTML page"), ("short", "bytes")],
)
def test_a_wrong_file_is_named_with_what_was_wanted_and_what_came(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, kind: FaultKind, got: str
) -> None:
    hub.fail(kind, "cdn:", at=0)
    with pytest.raises(CorruptError) as raised:
        fetch(store, console, tmp_path / "files")
    error = raised.value
    assert error.exit_status == 4
    assert error.field == "model.safetensors"
    assert error.expected in (f"SHA-256 {DIGEST}", "1048576 bytes")
    assert got in (error.got or "")
    assert error.message == f"model.safetensors: wanted {error.expected}, got {error.got}"
    assert not (tmp_path / "files" / "model.safetensors").exists()
    with store.partial(DIGEST) as path:
        assert not path.exists() or path.stat().st_size == 0


def test_a_small_file_is_checked_against_its_git_hash(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    hub.fail("flip", "hub:/org/model/resolve", at=5)
    with pytest.raises(
        CorruptError, match=r"README.md: wanted git blob SHA-1 \w{40}, got git blob SHA-1 \w{40}"
    ):
        fetch(store, console, tmp_path / "files")


def test_too_many_requests_waits_as_long_as_the_hub_says(
    hub: HubServer, store: Store, console: Console, tmp_path: Path
) -> None:
    for match in ("hub:/api/", "hub:/org/model/resolve"):
        hub.fail("status", match, status=429, headers={"Retry-After": "1"}, times=1)
    fetch(store, console, tmp_path / "files")
    for part in ("/api/", "README.md"):
        first, second = hub.requests(part, "hub")
        assert second.at - first.at >= 1


def test_a_wait_longer_than_patience_ends_the_command_and_is_told(hub: HubServer) -> None:
    hub.fail("status", "hub:/api/", status=429, headers={"Retry-After": "600"})
    with pytest.raises(HubError, match="HTTP 429") as raised:
        HubSource(IMPATIENT).resolve(MODEL)
    assert "600 s" in (raised.value.hint or "")
    assert len(hub.requests("/api/")) == 1


@pytest.mark.parametrize("match", ["hub:/api/", "hub:/org/model/resolve", "cdn:"])
def test_a_failing_server_is_asked_again_and_then_given_up(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, match: str
) -> None:
    hub.fail("status", match, status=503, times=IMPATIENT.retries)
    fetch(store, console, tmp_path / "first")
    hub.fail("status", match, status=502)
    with pytest.raises(HubError, match="HTTP 502") as raised:
        fetch(store, console, tmp_path / "second")
    assert raised.value.exit_status == 7


def test_a_gated_repository_says_where_to_accept_and_how_to_show_it(
    hub: HubServer, store: Store, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/model"].gated = "manual"
    hub.repositories["org/model"].token = "hf_member"
    for token in (None, "hf_stranger"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(AuthenticationError, match="accepted its licence") as raised:
            fetch(store, console, tmp_path / "files")
        assert f"{hub.url}/org/model" in (raised.value.hint or "")
        assert "HF_TOKEN" in (raised.value.hint or "")
        assert raised.value.exit_status == 8
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    fetch(store, console, tmp_path / "files")


@pytest.mark.parametrize("status", [401, 403])
def test_a_denial_asks_for_a_token(hub: HubServer, status: int) -> None:
    hub.fail("status", "hub:/api/", status=status)
    with pytest.raises(AuthenticationError, match=f"HTTP {status}") as raised:
        HubSource(IMPATIENT).resolve(MODEL)
    assert "HF_TOKEN" in (raised.value.hint or "")


def test_what_is_not_there_is_named(hub: HubServer) -> None:
    with pytest.raises(NotFoundError, match="no repository org/other"):
        HubSource(IMPATIENT).resolve(Reference.parse("hf/org/other"))
    with pytest.raises(NotFoundError, match="no revision 'v9'"):
        HubSource(IMPATIENT).resolve(Reference.parse("hf/org/model@v9"))


def test_a_page_in_place_of_the_api_is_not_taken_for_one(hub: HubServer) -> None:
    hub.fail("html", "hub:/api/")
    with pytest.raises(HubError, match="not the hub's API"):
        HubSource(IMPATIENT).resolve(MODEL)


def test_an_answer_without_a_commit_or_hashes_is_not_taken(hub: HubServer) -> None:
    answer = {"content-type": "application/json"}
    hub.fail(
        "status", "hub:/api/", status=200, body=b'{"id": "org/model", "sha": "main"}', headers=answer, times=1
    )
    with pytest.raises(HubError, match="as the commit"):
        HubSource(IMPATIENT).resolve(MODEL)
    body = b'{"id": "org/model", "sha": "%s", "siblings": [{"rfilename": "model.safetensors"}]}' % (b"a" * 40)
    hub.fail("status", "hub:/api/", status=200, body=body, headers=answer, times=1)
    with pytest.raises(CorruptError, match="declares no size or hash"):
        HubSource(IMPATIENT).resolve(MODEL)


@pytest.mark.parametrize("path", ["../../evil.safetensors", "/etc/passwd", "a//b", "x\x01y"])
def test_a_name_that_would_leave_the_folder_refuses_the_repository(hub: HubServer, path: str) -> None:
    hub.repositories["org/model"].files[path] = b"!"
    with pytest.raises(RefusedError, match="not a plain relative path"):
        HubSource(IMPATIENT).resolve(MODEL)


def test_a_repository_of_pickles_is_refused_with_the_way_out(hub: HubServer) -> None:
    hub.repositories["org/old"] = Repository({"config.json": CONFIG, "pytorch_model.bin": b"\x80\x02"})
    with pytest.raises(RefusedError, match="only as pickles") as raised:
        HubSource(IMPATIENT).resolve(Reference.parse("hf/org/old"))
    assert "save_pretrained" in (raised.value.hint or "")
    assert raised.value.exit_status == 4


def test_a_moved_repository_is_followed_with_a_warning(hub: HubServer) -> None:
    hub.renamed["org/former"] = "org/model"
    resolution = HubSource(IMPATIENT).resolve(Reference.parse("hf/org/former"))
    assert any("now published as org/model" in warning for warning in resolution.warnings)


def test_offline_is_said_and_nothing_is_asked(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        HubSource(IMPATIENT).resolve(MODEL)
    assert hub.seen == []


def test_a_hub_that_is_down_says_what_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="does not answer") as raised:
        HubSource(IMPATIENT).resolve(MODEL)
    assert "installed models go on working" in (raised.value.hint or "")
