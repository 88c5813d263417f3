"""The Hugging Face hub, or any server that speaks its API: ``hf/namespace/name[@revision]``.

The client library's usual environment variables hold: ``HF_ENDPOINT``, ``HF_TOKEN`` (or what ``axon login``
stored), ``HF_HUB_OFFLINE``, ``HF_HUB_DOWNLOAD_TIMEOUT``. The library asks for the repository's state and builds
addresses and headers; the bytes are brought by :mod:`mlos.axon.sources.download`, which can do what its own
download does not: resume into a named file and answer for the declared hash. Its chunk store (Xet) and its
cache are not used.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import httpx2
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but no __all__

from mlos import __version__
from mlos.axon.sources import Resolution, SourceFile, account, offline
from mlos.axon.sources.account import endpoint
from mlos.axon.sources.download import Patience, TransientError, download, is_transient, persist, retry_after
from mlos.axon.sources.gguf_choice import UNSERVED_GGUF, refuse_gguf
from mlos.axon.sources.selection import select
from mlos.console import Console
from mlos.errors import AuthenticationError, CorruptError, HubError, MlosError, NotFoundError, UsageError
from mlos.model import Reference
from mlos.store import Store


class HubSource:
    """Repositories on a hub."""

    remote: ClassVar[bool] = True
    forms: ClassVar[bool] = True

    def __init__(self, patience: Patience | None = None) -> None:
        self._patience = patience or Patience.from_environment()

    def resolve(self, reference: Reference, *, allow_pickle: bool = False) -> Resolution:
        """Ask the hub for the commit, the files and their hashes, the licence and the conditions.

        Raises:
            NotFoundError: no such repository or revision.
            AuthenticationError: a token or an accepted licence is needed.
            HubError: no answer, after the retries, or not a hub's.
            RefusedError: nothing in it that MLOS will read.
        """
        shown = str(reference.at(None).form(None))
        info = persist(lambda: self._ask(reference), self._patience)
        commit = info.sha or ""
        if len(commit) != 40 or any(digit not in "0123456789abcdef" for digit in commit):
            raise HubError(
                f"{endpoint()} gives {commit[:80]!r} as the commit of {shown}", expected="40 hex digits"
            )
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        # What the hub has read in a repository's GGUF files tells before anything is fetched.
        architecture = (info.gguf or {}).get("architecture")
        if architecture in UNSERVED_GGUF and not any(name.endswith(".safetensors") for name in siblings):
            raise refuse_gguf(architecture, UNSERVED_GGUF[architecture])
        selection = select(siblings, shown, allow_pickle=allow_pickle, form=reference.variant)
        files = tuple(_source_file(siblings[path], shown) for path in selection.paths)
        warnings = []
        if info.id != reference.path:
            warnings.append(
                f"{reference.path} is now published as {info.id}: check that its publisher is the one you mean"
            )
        return Resolution(
            reference=reference.at(commit),
            commit=commit,
            weights="hub",
            licence=_licence(info),
            files=files,
            size=sum(file.size for file in files),
            parameters=_parameters(info),
            notes=(*_conditions(info, shown), *selection.notes),
            warnings=tuple(warnings),
        )

    def fetch(self, resolution: Resolution, destination: Path, store: Store, console: Console) -> None:
        """Download each file by range into the store's partial files; move it on once it is checked."""
        reference = resolution.reference
        headers = build_hf_headers(library_name="mlos", library_version=__version__)
        with console.step(f"download {reference.path}", total=resolution.size, unit="B") as step:
            for file in resolution.files:
                url = hf_hub_url(reference.path, file.path, revision=resolution.commit, endpoint=endpoint())
                target = destination / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with store.partial(file.key) as part:
                    download(
                        url,
                        headers,
                        file,
                        part,
                        patience=self._patience,
                        step=step,
                        explain=partial(_problem, reference=reference, file=file.path),
                    )
                    part.replace(target)

    def _ask(self, reference: Reference) -> ModelInfo:
        revision = None if reference.wants_latest else reference.revision
        if offline():
            raise HubError(
                f"the hub is not asked for {reference}: HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE"
            )
        account.token()  # one that no header can carry is refused before the client shows it in its error
        try:
            return HfApi(endpoint=endpoint(), library_name="mlos", library_version=__version__).model_info(
                reference.path, revision=revision, files_metadata=True, timeout=self._patience.stall
            )
        except HfHubHTTPError as error:
            problem = _problem(error.response, reference)
            if is_transient(error.response.status_code):
                raise TransientError(problem, after=retry_after(error.response)) from error
            raise problem from error
        except HFValidationError as error:
            raise UsageError(f"not a repository's name: {reference.path!r}", field="reference") from error
        except httpx2.TransportError as error:
            problem = HubError(
                f"{endpoint()} does not answer: {str(error) or type(error).__name__}",
                hint="check the network and HF_ENDPOINT; installed models go on working, and so does seeded/…",
            )
            raise TransientError(problem) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # What the client raises on an answer that is no JSON, or not a model's: a portal's page.
            raise HubError(
                f"{endpoint()} answers for {reference.path} with something that is not the hub's API",
                hint="check HF_ENDPOINT, and whether a proxy or a login page stands between",
            ) from error


def _source_file(sibling: RepoSibling, shown: str) -> SourceFile:
    if sibling.lfs is not None:
        return SourceFile(sibling.rfilename, sibling.lfs.size, sha256=sibling.lfs.sha256)
    if sibling.size is None or not sibling.blob_id:
        raise CorruptError(
            f"{sibling.rfilename}: the hub declares no size or hash for it, so {shown} cannot be checked",
            field=sibling.rfilename,
            expected="a size and a hash",
            got="none",
        )
    return SourceFile(sibling.rfilename, sibling.size, git_sha1=sibling.blob_id)


def _conditions(info: ModelInfo, shown: str) -> tuple[str, ...]:
    if not info.gated:
        return ()
    return (f"{shown} is given only to accounts that have accepted its licence at {endpoint()}/{info.id}",)


def _parameters(info: ModelInfo) -> int | None:
    """What the hub has counted in the repository's SafeTensors."""
    total: object = None if info.safetensors is None else info.safetensors.total
    return total if isinstance(total, int) and total > 0 else None


def _licence(info: ModelInfo) -> str | None:
    card = getattr(info.card_data, "license", None)
    if isinstance(card, list):
        return ", ".join(str(part) for part in card)
    if isinstance(card, str):
        return card
    tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return tags[0] if tags else None


def _problem(response: httpx2.Response, reference: Reference, file: str | None = None) -> MlosError:
    """What a refusal means and what to do about it; the hub's own code is trusted above the status."""
    shown = str(reference.at(None))
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    page = f"{endpoint()}/{reference.path}"
    known = "authorization" in response.request.headers
    if code == "GatedRepo":
        whose = "the token's account is not among them" if known else "there is no token to show one"
        login = "axon login with a token of another account" if known else "axon login"
        return AuthenticationError(
            f"{shown} is given only to accounts that have accepted its licence, and {whose}",
            field="reference",
            got=reference.path,
            hint=f"accept it at {page} (some owners approve by hand); then {login}, or set HF_TOKEN",
        )
    if status == 401 and "Invalid credentials" in response.headers.get("X-Error-Message", ""):
        return account.unknown_token()
    if code == "RevisionNotFound":
        return NotFoundError(
            f"{shown} has no revision {reference.revision!r}",
            field="revision",
            got=reference.revision,
            hint=f"see {page}/commits/main, or leave @{reference.revision} away for the newest",
        )
    if code == "EntryNotFound" or (status == 404 and file is not None):
        return NotFoundError(f"{shown} has no file {file}", field=file)
    if code == "RepoNotFound" or status == 404:
        return NotFoundError(
            f"the hub at {endpoint()} has no repository {reference.path}, or it is private",
            field="reference",
            got=reference.path,
            hint="check the name; if it is private, axon login with a token that may read it, or set HF_TOKEN",
        )
    if status in (401, 403):
        return AuthenticationError(
            f"the hub at {endpoint()} denies access to {reference.path} (HTTP {status})",
            hint=f"see {page}; axon login with a token that may read it (or set HF_TOKEN)",
        )
    if status == 429:
        wait = retry_after(response)
        when = "later" if wait is None else f"in {wait:g} s"
        return HubError(
            f"the hub at {endpoint()} asks to slow down (HTTP 429) for {reference.path}",
            hint=f"try again {when}; after axon login the limits are wider",
        )
    return HubError(
        f"the hub at {endpoint()} fails for {reference.path}{f' ({file})' if file else ''}: HTTP {status}",
        hint="try again later: what is downloaded is kept, and installed models go on working",
    )
