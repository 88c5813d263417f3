"""Every error MLOS raises on purpose: one base, and what it means to a shell and to an HTTP client.

An error says what is wrong (``message``), and where it can, which input (``field``), what was wanted
(``expected``), what came (``got``) and what to do next (``hint``). The exit statuses are the documented ones
of the command line; the HTTP statuses are RFC 9110's.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar


class MlosError(Exception):
    """Base of all errors raised on purpose; anything else reaching a user is a bug."""

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        field: str | None = None,
        expected: str | None = None,
        got: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.field = field
        self.expected = expected
        self.got = got

    def as_dict(self) -> dict[str, Any]:
        """The error as every surface shows it: code, message, field, expected, got, hint."""
        return {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "expected": self.expected,
            "got": self.got,
            "hint": self.hint,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MlosError:
        """Rebuild an error that crossed a process boundary, as the class its ``code`` names."""
        kind = _by_code().get(str(data.get("code")), cls)
        details = {key: data.get(key) for key in ("hint", "field", "expected", "got")}
        return kind(str(data.get("message", "no message")), **details)

    def again(self) -> MlosError:
        """The same error once more, without the traceback of its first raising."""
        return copy.copy(self).with_traceback(None)


class UsageError(MlosError):
    """The command, request or setting itself is wrong."""

    code = "usage"
    exit_status = 2
    http_status = 400


class InvalidInputError(MlosError):
    """A request's data cannot be what the model takes: name, shape, type or value."""

    code = "invalid_input"
    exit_status = 2
    http_status = 400


class PayloadTooLargeError(InvalidInputError):
    """A request or one of its parts is larger than the limit."""

    code = "too_large"
    http_status = 413


class NotFoundError(MlosError):
    """What was named is not there: a model, a revision, a file, a task."""

    code = "not_found"
    exit_status = 3
    http_status = 404


class MissingExtraError(MlosError):
    """An optional part of MLOS is needed and not installed; the hint holds the command."""

    code = "missing_extra"
    exit_status = 3
    http_status = 501

    @classmethod
    def of(cls, extra: str, needed_for: str) -> MissingExtraError:
        """The error for one of this project's extras, for example ``of("convert", "converting a model")``."""
        return cls(
            f"{needed_for} needs the extra '{extra}', which is not installed",
            hint=f"pip install 'mlos[{extra}]'",
        )


class NotOfferedError(UsageError):
    """What was asked for belongs to the protocol and is not offered here."""

    code = "not_offered"
    http_status = 501


class RefusedError(MlosError):
    """Refused on principle: a failed verification, an unsafe or unknown format, a policy."""

    code = "refused"
    exit_status = 4
    http_status = 422


class CorruptError(RefusedError):
    """Bytes are not the bytes that were promised."""

    code = "corrupt"


class ParityError(MlosError):
    """The model's answers differ from its framework's, or could not have differed (vacuous)."""

    code = "parity"
    exit_status = 5
    http_status = 422


class NoRoomError(MlosError):
    """Too little disk or memory; the message says how much is needed and how much there is."""

    code = "no_room"
    exit_status = 6
    http_status = 507


class HubError(MlosError):
    """The hub or the network failed, after the retries."""

    code = "hub"
    exit_status = 7
    http_status = 502


class AuthenticationError(MlosError):
    """A token or an accepted licence is needed, or the one given is not enough."""

    code = "authentication"
    exit_status = 8
    http_status = 401


class ForbiddenError(MlosError):
    """Who asks is known, and may not."""

    code = "forbidden"
    exit_status = 8
    http_status = 403


class UnavailableError(MlosError):
    """Not now: loading, restarting, draining or full. ``retry_after`` is in seconds."""

    code = "unavailable"
    http_status = 503

    def __init__(self, message: str, *, retry_after: float = 1.0, **details: str | None) -> None:
        super().__init__(message, **details)
        self.retry_after = retry_after


class WorkerError(MlosError):
    """A worker process failed on a request for a reason of its own."""

    code = "worker"
    http_status = 500


class DeadlineError(MlosError):
    """The request's deadline passed before its answer was ready."""

    code = "deadline"
    http_status = 504


def _by_code() -> dict[str, type[MlosError]]:
    found: dict[str, type[MlosError]] = {}
    pending: list[type[MlosError]] = [MlosError]
    while pending:
        kind = pending.pop()
        found.setdefault(kind.code, kind)
        pending.extend(kind.__subclasses__())
    return found
