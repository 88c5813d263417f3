"""``axon login`` and ``axon logout``: the token that shows the hub who asks."""

from __future__ import annotations

import sys
import warnings
from getpass import GetPassWarning, getpass
from typing import Annotated

import typer
from rich.text import Text

from mlos.axon.commands import OutputOption, ProgressOption, voice
from mlos.axon.sources import account, offline
from mlos.console import Console
from mlos.errors import HubError, UsageError


def login(
    token_stdin: Annotated[
        bool, typer.Option("--token-stdin", help="Read the token from stdin, for pipes and files.")
    ] = False,
    output: OutputOption = None,
    progress: ProgressOption = None,
) -> None:
    """Store a token of the hub, for repositories whose licence must be accepted and private ones."""
    console = voice.choose(output, progress)
    variable = account.variable()
    if variable and not token_stdin:
        present = account.token()
        name = _owner(present, console) if present else None
        data = {"account": name, "token_from": variable, "stored": None}
        said = f"{variable} is set and is used{_of(name)}; nothing is stored"
        console.result(data, lambda: Text(said), [name or ""])
        return
    token = account.usable(
        _piped() if token_stdin else _typed(console), "stdin" if token_stdin else "the prompt"
    )
    name = _owner(token, console)
    path = account.keep(token)
    if variable:
        console.warn(f"{variable} is set and goes before the stored token: unset it to use this one")
    data = {"account": name, "token_from": variable or str(path), "stored": str(path)}
    console.result(data, lambda: Text(f"the token is stored in {path}{_of(name)}"), [name or ""])


def logout(output: OutputOption = None, progress: ProgressOption = None) -> None:
    """Delete the stored token."""
    console = voice.choose(output, progress)
    removed, others = account.forget()
    if others:
        console.warn(f"hf auth keeps tokens of its own ({', '.join(others)}): hf auth logout takes them away")
    if variable := account.variable():
        console.warn(f"{variable} is still set, and is used")
    path = account.token_file()
    said = f"the token in {path} is deleted" if removed else f"no token is stored in {path}"
    console.result({"removed": removed, "file": str(path)}, lambda: Text(said), [str(path)] if removed else [])


def _owner(token: str, console: Console) -> str | None:
    """Whose token it is; None, with a warning, where the hub cannot be asked. An unknown token raises."""
    if offline():
        console.warn("HF_HUB_OFFLINE is set: the token is not checked")
        return None
    try:
        return account.owner(token)
    except HubError as error:
        console.warn(f"the token is not checked: {error.message}")
        return None


def _of(name: str | None) -> str:
    return f"; its account is {name}" if name else ""


def _piped() -> str:
    """The first line of stdin; a byte that is no ASCII becomes a character that no token has."""
    line = sys.stdin.buffer.readline(account.LONGEST_TOKEN + 3)
    return line.decode("ascii", errors="replace").strip()


def _typed(console: Console) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "a token is typed on a terminal, and stdin is none",
            field="token",
            hint="axon login --token-stdin < FILE, or set HF_TOKEN",
        )
    console.note(f"tokens are made at {account.endpoint()}/settings/tokens; one that may read is enough")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", GetPassWarning)
            return getpass("token (not shown): ").strip()
    except GetPassWarning:
        raise UsageError(
            "this terminal cannot hide what is typed",
            field="token",
            hint="axon login --token-stdin < FILE, or set HF_TOKEN",
        ) from None
    except EOFError:
        raise UsageError("no token was typed", field="token", hint="axon login --token-stdin < FILE") from None
