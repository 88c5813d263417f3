"""Tokens, rights and the owner's socket: who may ask, who may administer, and who is told what (T11)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # it ships no types
from tests.core import packages
from tests.core.conftest import Server, Servers
from tests.core.handling import ROW, administer, request, run, socket_of
from tests.core.test_grpc import address
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # likewise

from mlos.core.access import Gate, Right
from mlos.core.cli import _refuse_strangers
from mlos.errors import AuthenticationError, ForbiddenError, UsageError
from mlos.settings import Settings
from mlos.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "requests.md"
TOKEN, ADMIN = "ask-" + "a" * 20, "administer-" + "b" * 20


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both tokens, one from a file and one from the settings file."""
    folder = tmp_path_factory.mktemp("guarded")
    packages.double(Store(folder / "store"))
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "config.toml").write_text(f'admin_token = "{ADMIN}"\n')
    servers = Servers()
    yield servers.start(folder, "--token-file", str(folder / "token"), "--grpc-port", "0")
    servers.close()


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    ("right", "authorization", "error"),
    [
        (Right.INFERENCE, "", AuthenticationError),
        (Right.INFERENCE, TOKEN, AuthenticationError),
        (Right.INFERENCE, f"Basic {TOKEN}", AuthenticationError),
        (Right.INFERENCE, f"Bearer {TOKEN[:-1]}", AuthenticationError),
        (Right.INFERENCE, f"Bearer {TOKEN} {TOKEN}", AuthenticationError),
        (Right.INFERENCE, "Bearer \udcff\udcfe", AuthenticationError),
        (Right.INFERENCE, f"Bearer {TOKEN}", None),
        (Right.INFERENCE, f"bearer {ADMIN}", None),
        (Right.ADMINISTRATION, "", AuthenticationError),
        (Right.ADMINISTRATION, f"Bearer {TOKEN}", ForbiddenError),
        (Right.ADMINISTRATION, f"Bearer {ADMIN}", None),
    ],
)
def test_a_gate_lets_in_who_has_the_right(
    right: Right, authorization: str, error: type[Exception] | None
) -> None:
    gate = Gate(TOKEN, ADMIN)
    if error is None:
        assert right in gate.check(right, authorization)
        return
    with pytest.raises(error) as refused:
        gate.check(right, authorization)
    assert TOKEN not in str(vars(refused.value))


def test_without_tokens_asking_is_open_and_administration_is_the_owners() -> None:
    assert Gate().rights("") == {Right.INFERENCE}
    with pytest.raises(ForbiddenError, match="not open here"):
        Gate().check(Right.ADMINISTRATION, "Bearer anything")
    assert Gate(owner=True).rights("") == set(Right)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/models/double/inference"),
        ("POST", "/v1//models/double/inference/../inference"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/double"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v2/models/double/infer"),
        ("POST", "/v2/models/double/generate"),
        ("GET", "/v2/models/nobody"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/double/load"),
        ("POST", "/v2/repository/models/double/unload"),
        ("POST", "/admin/models/double/unload"),
        ("POST", "/admin/models/health/unload"),
        ("GET", "/metrics"),
        ("GET", "/version"),
    ],
)
def test_nothing_but_health_is_told_without_the_token(guarded: Server, method: str, path: str) -> None:
    for headers in ({}, bearer("c" * 24)):
        answer = guarded.request(method, path, b"{}" if method == "POST" else None, headers)
        if "//" in path:  # no such address, however it is meant
            assert answer.status == 404
            continue
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json.get("hint") or answer.error["hint"]
        assert "c" * 24 not in answer.body.decode()


def test_with_the_token_a_model_is_asked_and_not_administered(guarded: Server) -> None:
    for path in ("/health", "/v2/health/live", "/v2/health/ready", "/openapi.json"):
        assert guarded.get(path).status == 200
    assert guarded.infer("double", ROW, **bearer(TOKEN)).status == 200
    assert guarded.request("POST", "/v2/repository/models/double/load", b"{}", bearer(TOKEN)).status == 200
    for path in ("/admin/models/double/unload", "/v2/repository/models/double/unload"):
        answer = guarded.request("POST", path, b"", bearer(TOKEN))
        assert (answer.status, "forbidden" in answer.body.decode()) == (403, True)
    assert guarded.infer("double", ROW, **bearer(ADMIN)).status == 200
    assert TOKEN not in guarded.log.read_text()
    assert ADMIN not in guarded.log.read_text()


def test_what_administration_unloaded_only_administration_loads(guarded: Server) -> None:
    load, unload = (f"/v2/repository/models/double/{verb}" for verb in ("load", "unload"))
    assert guarded.request("POST", unload, b"{}", bearer(ADMIN)).status == 200
    answer = guarded.infer("double", ROW, **bearer(TOKEN))
    assert (answer.status, "unloaded" in answer.error["message"]) == (503, True)
    assert guarded.request("POST", load, b"{}", bearer(TOKEN)).status == 403
    assert guarded.request("POST", load, b"{}", bearer(ADMIN)).status == 200
    assert guarded.infer("double", ROW, **bearer(TOKEN)).status == 200


def test_calls_bring_their_token_too(guarded: Server) -> None:
    with triton.InferenceServerClient(address(guarded)) as client:
        assert client.is_server_live()
        for call, token, code in (
            (client.get_model_metadata, "", "UNAUTHENTICATED"),
            (client.load_model, "c" * 24, "UNAUTHENTICATED"),
            (client.unload_model, "", "UNAUTHENTICATED"),
            (client.unload_model, TOKEN, "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException) as refused:
                call("double", headers=bearer(token) if token else None)
            assert refused.value.status() == f"StatusCode.{code}"
        assert client.get_model_metadata("double", headers=bearer(TOKEN)).name == "double"
        client.unload_model("double", headers=bearer(ADMIN))
        assert not client.is_model_ready("double", headers=bearer(TOKEN))
        with pytest.raises(InferenceServerException, match="only administration"):
            client.load_model("double", headers=bearer(TOKEN))
        client.load_model("double", headers=bearer(ADMIN))
        assert client.is_model_ready("double", headers=bearer(TOKEN))


def test_the_owners_socket_needs_no_token_and_is_nobody_elses(guarded: Server) -> None:
    path = socket_of(guarded)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert administer(guarded, "unload", "double").json["state"] == "STOPPED"
    row = administer(guarded, "load", "hf/tests/double").json
    assert (row["id"], row["state"]) == ("double", "READY")
    assert administer(guarded, "load", "nobody").status == 404
    assert request(guarded, "GET", "/metrics").status == 200


def test_an_address_beyond_loopback_needs_a_token_or_consent() -> None:
    """That a server without either ends is held by ``test_lifecycle``."""
    for given in ({"token": TOKEN}, {"token_file": Path("/token")}, {"allow_remote": True}):
        _refuse_strangers(Settings(host="0.0.0.0", **given))
    with pytest.raises(UsageError, match="not a loopback address"):
        _refuse_strangers(Settings(host="0.0.0.0", admin_token=ADMIN))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('token = "short"', "token is no token"),
        (f'token = "{TOKEN}"\nadmin_token = "{TOKEN}"', "the two tokens are the same"),
        (f'token = "{TOKEN}"\ntoken_file = "/nowhere"', "given itself and as a file"),
        ('admin_token_file = "/nowhere/token"', "admin_token_file cannot be read"),
        ("token = 12345678901234567890", "setting token"),
    ],
)
def test_what_is_no_token_ends_the_server_and_is_not_shown(home: Path, lines: str, said: str) -> None:
    (home / "config.toml").write_text(lines + "\n")
    ended = run(home, "--port", "0")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "short" not in ended.stderr.replace("too short", "")
    assert TOKEN not in ended.stderr
    assert "12345678901234567890" not in ended.stderr


def test_the_commands_of_the_page_work(guarded: Server) -> None:
    """Every command of the page's sections on tokens and administration, run by a shell as it stands there."""
    _, _, page = PAGE.read_text(encoding="utf-8").partition("## Tokens")
    commands = [line.strip() for line in page.splitlines() if line.startswith("    curl ")]
    assert len(commands) == 6
    variables = {"MLOS_TOKEN": TOKEN, "MLOS_ADMIN_TOKEN": ADMIN, "MLOS_HOME": str(guarded.home)}
    for command in commands:
        here = command.replace("8080", str(guarded.port)).replace("/bert/", "/double/")
        done = subprocess.run(
            ["bash", "-c", here.replace("curl", "curl -sS --fail-with-body", 1)],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (here, done.stdout, done.stderr)
        assert "error" not in json.loads(done.stdout)
