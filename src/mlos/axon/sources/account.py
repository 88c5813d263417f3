"""The account on the hub: which hub is meant, whose token is sent, and where the token is kept.

The token is kept where the hub's own client keeps it (``HF_TOKEN_PATH``, else ``HF_HOME/token``), so that one
login serves both. It appears in no message, also where it is wrong: a mistyped token is still half a secret.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_stored_tokens  # type: ignore[attr-defined]  # public, but no __all__

from mlos import __version__
from mlos.errors import AuthenticationError, HubError, UsageError

LONGEST_TOKEN = 4096
"""Characters; the hub's have 37, those of an identity provider some thousand."""


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def variable() -> str | None:
    """The environment variable that gives the token; it goes before a stored one."""
    return next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)


def token_file() -> Path:
    """Where the token is kept."""
    return Path(constants.HF_TOKEN_PATH)


def usable(token: str, whence: str) -> str:
    """``token``, if it can stand in a header.

    Raises:
        UsageError: if it cannot. The HTTP client refuses some of these too, and shows the whole header.
    """
    if not 0 < len(token) <= LONGEST_TOKEN or any(not "!" <= character <= "~" for character in token):
        raise UsageError(
            f"the token from {whence} is not one",
            field="token",
            expected=f"1 to {LONGEST_TOKEN} printable ASCII characters without a space",
            hint=f"copy it again from {endpoint()}/settings/tokens",
        )
    return token


def token() -> str | None:
    """The token that requests to the hub carry, if there is one.

    Raises:
        UsageError: if what is set or stored cannot be one.
    """
    found = get_token()
    return None if found is None else usable(found, variable() or str(token_file()))


def owner(token: str) -> str:
    """The name of the account whose ``token`` it is, as the hub says.

    Raises:
        AuthenticationError: the hub does not know the token.
        HubError: the hub does not answer, or with something else.
    """
    try:
        name = HfApi(endpoint=endpoint(), library_name="mlos", library_version=__version__).whoami(token)[
            "name"
        ]
    except HfHubHTTPError as error:
        # Without "from": the client's error holds the request, and with it the token.
        if error.response.status_code == 401:
            raise unknown_token() from None
        raise HubError(
            f"{endpoint()} does not say whose token it is: HTTP {error.response.status_code}"
        ) from None
    except httpx2.TransportError as error:
        raise HubError(f"{endpoint()} does not answer: {type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        # No JSON, or not an account's: a portal's page.
        raise HubError(f"{endpoint()} answers with something that is not the hub's API") from None
    return str(name)


def unknown_token() -> AuthenticationError:
    """The error for a token that the hub does not know."""
    return AuthenticationError(
        f"the hub at {endpoint()} does not know the token: it is mistyped, expired or revoked",
        field="token",
        hint=f"make one at {endpoint()}/settings/tokens, then axon login (or set HF_TOKEN)",
    )


def keep(token: str) -> Path:
    """Store ``token`` for its owner's eyes alone (mode 0600), whole or not at all; return where."""
    path = token_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=".token-")  # mode 0600 from its first moment
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(token)
        Path(made).replace(path)
    except BaseException:  # an interruption too must not leave the token lying in a file without a name
        Path(made).unlink(missing_ok=True)
        raise
    return path


def forget() -> tuple[bool, tuple[str, ...]]:
    """Delete the stored token.

    Returns:
        Whether there was one, and the names under which the hub's own client keeps tokens beside it. Those
        are left alone: ``hf auth`` put them there.
    """
    path = token_file()
    there = path.exists()
    path.unlink(missing_ok=True)
    return there, tuple(sorted(get_stored_tokens()))
