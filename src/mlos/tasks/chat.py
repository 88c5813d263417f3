"""Chat: a conversation, and the model's next turn in it."""

from __future__ import annotations

import datetime
import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks.generation import KNOWN, LanguageTask
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, check_texts, subject_among

ROLES = ("system", "user", "assistant")
MAX_MESSAGES = 1024
_DATE = "date"
_MORE: Known = {_DATE: ("a day such as 2024-07-26", lambda value: _is_day(value))}
_RENDER_SECONDS = 5.0
_RENDER_FACTOR, _RENDER_EXTRA = 4, 1 << 16
"""A template may write so many times the conversation's length, and so many characters more."""


class Chat(LanguageTask):
    """The next turn of ``messages``, by the model's own chat template.

    The template comes from the model's file, never from a request. It is rendered in a sandbox whose objects it
    cannot change, within bounds of time and output. What people say in a conversation is text: a message that
    spells a control token is refused.

    Some templates tell the model the day. The parameter ``date`` says which; without it, it is today, as in the
    framework. See :data:`~mlos.tasks.generation.KNOWN` for the other parameters.
    """

    name: ClassVar[str] = "chat"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        super().__init__(folder, manifest, limits)
        source = self._vocabulary.chat_template
        if source is None:
            raise RefusedError("the model has no chat template", field="tokenizer.chat_template")
        self.use(source)

    def use(self, source: str) -> None:
        """Take ``source`` for the template.

        Raises:
            RefusedError: if it is no template.
        """
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise RefusedError(
                f"the model's chat template cannot be read: {error}", field="tokenizer.chat_template"
            ) from error

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds a conversation."""
        return request.messages is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Render the conversation, up to where the model's turn begins, and tokenise it."""
        subject_among(request, self.name, "messages")
        messages = request.messages or []
        if not 1 <= len(messages) <= MAX_MESSAGES:
            raise InvalidInputError(
                f"messages holds {len(messages)} messages",
                field="messages",
                expected=f"1 to {MAX_MESSAGES} messages",
                got=str(len(messages)),
            )
        check_texts([message.content for message in messages], "messages", self._max_text_bytes)
        for number, message in enumerate(messages):
            if message.role not in ROLES:
                raise InvalidInputError(
                    f"messages[{number}] has the unknown role {message.role[:100]!r}",
                    field=f"messages[{number}].role",
                    expected=", ".join(ROLES),
                    got=repr(message.role[:100]),
                )
            self.refuse_control(
                message.content, f"messages[{number}].content", "leave the token out, or spell it otherwise"
            )
        day = check_parameters(request, {**KNOWN, **_MORE}).get(_DATE)
        text = self._render([{"role": each.role, "content": each.content} for each in messages], day)
        return self._prepared(self.encode(text, control=True, begin=False), request, _MORE)

    def _render(self, messages: list[dict[str, str]], day: str | None) -> str:
        def strftime_now(pattern: str) -> str:
            now = datetime.datetime.fromisoformat(day) if day is not None else _now()
            return now.strftime(pattern)

        most = _RENDER_FACTOR * sum(len(each["content"]) for each in messages) + _RENDER_EXTRA
        pieces, length = [], 0
        try:
            with _alarm(_RENDER_SECONDS):
                for piece in self._template.generate(
                    messages=messages,
                    tools=None,  # as the framework has them where there are none: defined, and none
                    documents=None,
                    add_generation_prompt=True,
                    strftime_now=strftime_now,
                    bos_token=self._vocabulary.bos,
                    eos_token=self._vocabulary.eos,
                ):
                    pieces.append(piece)
                    length += len(piece)
                    if length > most:
                        raise PayloadTooLargeError(
                            f"the model's chat template makes more than {most} characters of this conversation",
                            field="messages",
                        )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # What a template raises by itself is about the conversation: roles that must alternate, say.
            raise InvalidInputError(
                f"the model's chat template refuses the conversation: {str(error)[:300]}", field="messages"
            ) from error
        return "".join(pieces)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as the framework sets it up for chat templates, without anything that reaches outside."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now() -> datetime.datetime:
    """The time on this machine's clock; like the framework's, without a zone to be told."""
    return datetime.datetime.now().astimezone().replace(tzinfo=None)


def _is_day(value: Any) -> bool:
    if not isinstance(value, str) or not re.fullmatch(r"[1-9][0-9]{3}-[0-9]{2}-[0-9]{2}", value):
        return False
    try:
        datetime.date.fromisoformat(value)
    except ValueError:
        return False
    return True


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Interrupt the block after so long; only where signals arrive, which is the main thread (a worker's own).

    Raises:
        InvalidInputError: if it took longer.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> NoReturn:
        raise InvalidInputError(
            f"the model's chat template took longer than {seconds:g} s for this conversation", field="messages"
        )

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
