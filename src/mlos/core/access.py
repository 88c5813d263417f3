"""Who may do what: a token for asking, another for administration, and the owner's own socket (T11).

A right is checked on the endpoint that a request was routed to, never on its address, so that no spelling of an
address leads around it. Without a token, who reaches the server may ask it; nobody administers it but on its
Unix socket, which is its owner's alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr

from mlos.errors import AuthenticationError, ForbiddenError, UsageError
from mlos.settings import Settings

_TOKEN = re.compile(r"[\x21-\x7e]{16,1024}")
_BEARER = re.compile(r"\s*bearer\s+(?P<token>\S+)\s*", re.IGNORECASE)


class Right(StrEnum):
    """What may be allowed to who calls."""

    INFERENCE = "inference"
    ADMINISTRATION = "administration"


class Gate:
    """The rights of who calls by one way: with no token asking is open and administration is not.

    ``owner`` is the way of the Unix socket, on which everything is allowed.
    """

    def __init__(
        self, token: str | None = None, admin_token: str | None = None, *, owner: bool = False
    ) -> None:
        self._token, self._admin_token = _digest(token), _digest(admin_token)
        self._owner = owner

    def rights(self, authorization: str) -> frozenset[Right]:
        """What a request may do that came with this ``Authorization``; the header may be empty."""
        found = _BEARER.fullmatch(authorization)
        given = _digest(found["token"]) if found else b""
        assert given is not None
        if self._owner or (self._admin_token is not None and hmac.compare_digest(given, self._admin_token)):
            return frozenset(Right)
        if self._token is None or hmac.compare_digest(given, self._token):
            return frozenset({Right.INFERENCE})
        return frozenset()

    def check(self, right: Right, authorization: str) -> frozenset[Right]:
        """All rights of a request that needs this one.

        Raises:
            AuthenticationError: no token came, or none that is known.
            ForbiddenError: the token allows asking and not administration.
        """
        rights = self.rights(authorization)
        if right in rights:
            return rights
        if rights and (authorization or self._admin_token is None):
            raise ForbiddenError(
                "this is administration, which "
                + ("a token for inference does not allow" if self._admin_token else "is not open here"),
                field="Authorization",
                expected="the administration token" if self._admin_token else "the server's own Unix socket",
                hint=None
                if self._admin_token
                else "use the Unix socket in MLOS_HOME/sockets, or start mlos_core with MLOS_ADMIN_TOKEN",
            )
        raise AuthenticationError(
            "the token is not known here" if authorization else f"{right} needs a token here",
            field="Authorization",
            expected="Bearer and a token",
            got="another" if authorization else "nothing",
            hint="send the header 'Authorization: Bearer TOKEN', with the token the server was started with",
        )


def gate_of(settings: Settings) -> Gate:
    """The gate of the server's open addresses.

    Raises:
        UsageError: a token is too short to be one, its file cannot be read, or it is given twice.
    """
    token = _given("token", settings.token, settings.token_file)
    admin_token = _given("admin_token", settings.admin_token, settings.admin_token_file)
    if token is not None and token == admin_token:
        raise UsageError("the two tokens are the same", field="admin_token", expected="another than the token")
    return Gate(token, admin_token)


def _given(name: str, token: SecretStr | None, file: Path | None) -> str | None:
    if token is None and file is None:
        return None
    if token is not None and file is not None:
        raise UsageError(f"{name} is given itself and as a file", field=name, expected="one of them")
    try:
        text = token.get_secret_value() if token is not None else (file or Path()).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name}_file cannot be read: {error}", field=f"{name}_file", got=str(file)) from error
    if not _TOKEN.fullmatch(text):
        raise UsageError(
            f"{name} is no token",
            field=name,
            expected="16 to 1024 letters, digits and signs of ASCII, without spaces",
            got=f"{len(text)} characters",
            hint="python3 -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
        )
    return text


def _digest(token: str | None) -> bytes | None:
    """What is compared in place of a token, so that not even its length can be told from the time it takes."""
    return None if token is None else hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
