"""Logging in and out, and what a gated repository asks for: the token shows up nowhere but in its file."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
from pathlib import Path

import pytest
from tests.axon.conftest import AXON, answer, axon, contents
from tests.axon.hub_server import HubServer, Repository
from tests.axon.onnx_files import line

MEMBER, STRANGER, WRONG = "hf_memberCanary", "hf_strangerCanary", "hf_wrongCanary"
GATED = "org/gated"


@pytest.fixture
def gated(hub: HubServer, tmp_path: Path) -> HubServer:
    """The hub, with two accounts and a model that one of them may read."""
    hub.accounts.update({MEMBER: "ada", STRANGER: "bob"})
    model = line(tmp_path / "line.onnx").read_bytes()
    hub.repositories[GATED] = Repository({"model.onnx": model}, gated="manual", token=MEMBER)
    return hub


def piped(token: bytes, *more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [AXON, "login", "--token-stdin", *more], input=token, capture_output=True, timeout=100, check=False
    )


def stored(tmp_path: Path) -> Path:
    return tmp_path / "hf-home" / "token"


def test_without_access_the_repository_the_page_and_the_login_are_named(gated: HubServer) -> None:
    said = {}
    for token in (None, STRANGER):
        if token:
            assert piped(token.encode()).returncode == 0
        done = axon("install", f"hf/{GATED}")
        assert done.returncode == 8, done.stderr
        for words in (f"hf/{GATED} ", f"{gated.url}/{GATED} ", "axon login"):
            assert words in done.stderr.replace("\n", " ")
        said[token] = done.stderr
        assert "Canary" not in done.stderr + done.stdout
    assert "no token" in said[None]
    assert "the token's account is not among them" in said[STRANGER]


def test_with_access_it_installs_and_the_token_is_written_nowhere_else(
    gated: HubServer, tmp_path: Path
) -> None:
    assert piped(MEMBER.encode() + b"\n").returncode == 0
    done = axon("install", f"hf/{GATED}", "--progress", "plain")
    assert done.returncode == 0, done.stderr
    assert "accepted its licence" in done.stderr
    assert MEMBER not in done.stdout + done.stderr
    written = contents(tmp_path)
    assert any(path.startswith("home/store/") for path in written)
    assert [path for path, data in written.items() if MEMBER.encode() in data] == ["hf-home/token"]


def test_a_login_is_checked_and_kept_for_its_owner_alone(gated: HubServer, tmp_path: Path) -> None:
    done = piped(f"  {MEMBER}\r\nsecond line".encode())
    assert (done.returncode, b"account is ada" in done.stdout) == (0, True)
    assert stored(tmp_path).read_text() == MEMBER
    assert stat.S_IMODE(stored(tmp_path).stat().st_mode) == 0o600
    assert [path.name for path in stored(tmp_path).parent.iterdir()] == ["token"]
    assert [seen.headers["authorization"] for seen in gated.requests("whoami")] == [f"Bearer {MEMBER}"]


def test_a_token_that_the_hub_does_not_know_is_not_kept(gated: HubServer, tmp_path: Path) -> None:
    done = piped(WRONG.encode())
    assert (done.returncode, done.stdout) == (8, b"")
    assert b"does not know the token" in done.stderr
    assert b"Canary" not in done.stderr
    assert not stored(tmp_path).exists()


def test_a_token_that_the_hub_does_not_know_stops_an_install(
    gated: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRONG)
    done = axon("install", f"hf/{GATED}")
    assert done.returncode == 8
    assert "does not know the token" in done.stderr
    assert "Canary" not in done.stderr


@pytest.mark.parametrize("fault", ["status", "html"])
def test_where_the_hub_cannot_say_the_token_is_kept_unchecked(
    gated: HubServer, tmp_path: Path, fault: str
) -> None:
    if fault == "status":
        gated.fail("status", "whoami", status=500)
    else:
        gated.fail("html", "whoami")
    done = piped(MEMBER.encode())
    assert done.returncode == 0, done.stderr
    assert b"is not checked" in done.stderr
    assert b"Canary" not in done.stderr
    assert stored(tmp_path).read_text() == MEMBER


def test_a_hub_that_is_not_there_and_offline_keep_it_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert b"does not answer" in piped(MEMBER.encode()).stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert b"HF_HUB_OFFLINE is set" in piped(STRANGER.encode()).stderr
    assert stored(tmp_path).read_text() == STRANGER


@pytest.mark.parametrize(
    "token", [b"", b"\n", b"two Canary words", b"Canary\x01", "Canaryé".encode(), b"Canary" * 1000]
)
def test_what_cannot_be_a_token_is_refused_unseen(gated: HubServer, tmp_path: Path, token: bytes) -> None:
    done = piped(token)
    assert done.returncode == 2
    assert b"Canary" not in done.stdout + done.stderr
    assert not stored(tmp_path).exists()
    assert gated.seen == []


def test_what_cannot_be_a_token_is_not_shown_by_an_install(hub: HubServer, tmp_path: Path) -> None:
    stored(tmp_path).parent.mkdir()
    stored(tmp_path).write_bytes(b"Canary\0x")  # the HTTP client shows the whole header in its error
    done = axon("install", "hf/org/model")
    assert done.returncode == 2, done.stderr
    assert str(stored(tmp_path)) in done.stderr
    assert "Canary" not in done.stderr


def test_a_token_in_the_environment_is_said_and_goes_before(
    gated: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", MEMBER)
    said = answer("login")
    assert said == {"account": "ada", "token_from": "HF_TOKEN", "stored": None}
    assert not stored(tmp_path).exists()
    assert b"HF_TOKEN is set and goes before" in piped(STRANGER.encode()).stderr
    assert stored(tmp_path).read_text() == STRANGER
    assert "HF_TOKEN is still set" in axon("logout").stderr


def test_a_token_is_not_shown_while_it_is_typed(gated: HubServer, tmp_path: Path) -> None:
    terminal, inside = pty.openpty()
    with subprocess.Popen(
        [AXON, "login"], stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    ) as run:
        os.close(inside)
        shown = b""
        while b"token (not shown): " not in shown:
            shown += os.read(terminal, 4096)
        os.write(terminal, MEMBER.encode() + b"\n")
        try:
            while part := os.read(terminal, 4096):
                shown += part
        except OSError:  # how Linux says that nobody has the terminal open any more
            pass
    os.close(terminal)
    assert run.returncode == 0
    assert b"account is ada" in shown.replace(b"\r\n", b" ")
    assert b"Canary" not in shown
    assert stored(tmp_path).read_text() == MEMBER


def test_without_a_terminal_it_says_how() -> None:
    done = axon("login")
    assert done.returncode == 2
    assert "--token-stdin" in done.stderr


def test_a_logout_deletes_the_token_and_leaves_those_of_others(gated: HubServer, tmp_path: Path) -> None:
    assert answer("logout")["removed"] is False
    piped(MEMBER.encode())
    others = tmp_path / "hf-home" / "stored_tokens"
    others.write_text(f"[work]\nhf_token = {STRANGER}\n")
    done = axon("logout")
    assert (done.returncode, stored(tmp_path).exists()) == (0, False)
    assert "hf auth logout" in done.stderr
    assert "work" in done.stderr
    assert others.exists()
    assert "Canary" not in done.stdout + done.stderr
    assert axon("install", f"hf/{GATED}").returncode == 8


def test_a_plan_says_that_a_licence_must_be_accepted(gated: HubServer) -> None:
    done = axon("install", f"hf/{GATED}", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"accepted its licence at {gated.url}/{GATED}" in done.stderr
