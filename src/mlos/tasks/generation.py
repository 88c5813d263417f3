"""What the tasks of language models share: parameters, text as it is written, and the loop that writes it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np

from mlos.engines import Engine, LanguageModel, Sampling, Sequences, Vocabulary, vocabulary_of
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, is_number, is_whole
from mlos.tasks.task import Stream

MAX_TOKENS = 256
"""Tokens written where a request names no number."""
_MOST_STOPS, _LONGEST_STOP = 16, 256
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")

FinishReason: TypeAlias = Literal["stop", "length"]

KNOWN: Known = {
    "max_tokens": ("a whole number from 1", lambda value: is_whole(value, 1)),
    "temperature": (
        "0, which takes the likeliest, or a number from 0.001 to 100",
        lambda value: is_number(value, 0, 0) or is_number(value, 0.001, 100),
    ),
    "top_k": ("a whole number from 0; 0 leaves all tokens in", lambda value: is_whole(value, 0, 1 << 20)),
    "top_p": ("a number above 0, at most 1", lambda value: is_number(value, 0, 1) and value > 0),
    "min_p": ("a number from 0 to 1", lambda value: is_number(value, 0, 1)),
    "repetition_penalty": (
        "a number from 0.01 to 10",
        lambda value: is_number(value, 0.01, 10),
    ),
    "presence_penalty": ("a number from -2 to 2", lambda value: is_number(value, -2, 2)),
    "frequency_penalty": ("a number from -2 to 2", lambda value: is_number(value, -2, 2)),
    "seed": ("a whole number from 0 to 4294967295", lambda value: is_whole(value, 0, 2**32 - 1)),
    "stop": (
        f"a text, or up to {_MOST_STOPS} texts, of 1 to {_LONGEST_STOP} characters",
        lambda value: _are_stops(value),
    ),
}
"""Parameters of every language model, as :func:`check_parameters` takes them."""


@dataclass(frozen=True)
class Generated:
    """What a language model wrote: its text, and why it ended: it or a stop string said so, or its length."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens by what they were."""
        return {"prompt": self.prompt_tokens, "completion": self.completion_tokens}

    def as_result(self) -> dict[str, Any]:
        """The answer, in the words of JSON."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "completion_tokens": self.completion_tokens,
            },
        }


class Writing:
    """Text as it comes, in pieces of tokens: whole characters only, and nothing from a stop string on.

    What may still turn out to be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.text = ""
        """What is certain so far."""
        self.stopped = False
        """Whether a stop string has come."""

    def add(self, piece: bytes) -> str:
        """Take in a token's bytes; returns what has become certain with them."""
        return self._settle(self._decoder.decode(piece))

    def finish(self) -> str:
        """There will be no more: returns what was held back; a broken character becomes U+FFFD."""
        certain = self._settle(self._decoder.decode(b"", final=True))
        if not self.stopped:
            certain += self._held
            self.text += self._held
            self._held = ""
        return certain

    def _settle(self, more: str) -> str:
        if self.stopped:
            return ""
        self._held += more
        # The one that is complete first counts, so that it does not matter how the text was cut in pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)[1]], ""
        else:
            keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
            cut = len(self._held) - keep
            certain, self._held = self._held[:cut], self._held[cut:]
        self.text += certain
        return certain


@dataclass(frozen=True)
class _Plan:
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]


class Continuation:
    """A language model's answer under way: see :class:`mlos.tasks.Writer`.

    ``prompt`` is what the model continues, choosing as ``sampling`` says, by at most ``most`` tokens.
    """

    def __init__(
        self, vocabulary: Vocabulary, ends: Callable[[int], bool], prompt: Sequence[int], plan: _Plan, most: int
    ) -> None:
        self.prompt, self.sampling, self.most = prompt, plan.sampling, most
        self._vocabulary, self._ends = vocabulary, ends
        self._writing, self._written = Writing(plan.stops), 0
        self._reason: FinishReason = "length"

    def join(self, places: Sequences) -> int | None:
        """See :class:`mlos.tasks.Writer`."""
        return places.join(self.prompt, self.sampling, self.most)

    def take(self, token: int, stream: Stream) -> bool:
        """See :class:`mlos.tasks.Writer`."""
        self._written += 1
        if self._ends(token):
            self._reason = "stop"
            return True
        if delta := self._writing.add(self._vocabulary.piece(token)):
            stream.emit({"text": delta})
        if self._writing.stopped:
            self._reason = "stop"
        return self._writing.stopped or self._written >= self.most

    def finish(self, stream: Stream) -> Generated:
        """See :class:`mlos.tasks.Writer`."""
        if rest := self._writing.finish():
            stream.emit({"text": rest})
        return Generated(self._writing.text, self._reason, len(self.prompt), self._written)


class LanguageTask:
    """A task of a language model: one sequence of tokens is continued.

    The model's own file holds its vocabulary. What that does not say, ``manifest.preprocessing[task]`` may:
    ``ends``, the tokens with which the model says that it has finished (without it, those that llama.cpp takes
    for such by their texts); and ``normalization``, the Unicode form (such as ``NFC``) that the framework's
    tokenizer brings a text into before it cuts it, and llama.cpp does not.
    """

    name: ClassVar[str]
    beside = True

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._max_text_bytes = limits.max_text_bytes
        self._vocabulary: Vocabulary = vocabulary_of(folder, manifest.artifact)
        texts = sorted(filter(None, self._vocabulary.control), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts))) if texts else None
        facts = manifest.preprocessing.get(self.name, {})
        ends = facts.get("ends")
        if ends is not None and not (isinstance(ends, list) and all(is_whole(each, 0) for each in ends)):
            raise RefusedError(
                f"the manifest does not say with which tokens an answer ends for {self.name}",
                field=f"preprocessing.{self.name}.ends",
                expected="a list of tokens",
                got=f"{ends!r:.100}",
            )
        self._ends: Callable[[int], bool] = self._vocabulary.ends if ends is None else set(ends).__contains__
        self._form = facts.get("normalization")
        if self._form not in (None, *_UNICODE_FORMS):
            raise RefusedError(
                f"the manifest does not name a Unicode form that texts are brought into for {self.name}",
                field=f"preprocessing.{self.name}.normalization",
                expected=", ".join(_UNICODE_FORMS),
                got=f"{self._form!r:.100}",
            )

    def compute(self, engine: Engine, prepared: Prepared, stream: Stream) -> Generated:
        """Write until the model, a stop string or the length ends it."""
        if not isinstance(engine, LanguageModel):
            raise RefusedError(
                f"{engine.name} does not continue sequences of tokens",
                field="engine",
                expected="an engine of language models",
                got=engine.name,
            )
        writer = self.writer(engine, prepared)
        with closing(engine.generate(writer.prompt, writer.sampling, stream.check)) as tokens:
            for token in tokens:
                if writer.take(token, stream):
                    break
        return writer.finish(stream)

    def writer(self, engine: LanguageModel, prepared: Prepared) -> Continuation:
        """The answer to a request, to be written by ``engine``, alone or beside others.

        Raises:
            PayloadTooLargeError: if the prompt leaves no room in the model's context.
        """
        prompt = prepared.inputs["input_ids"][0].tolist()
        if len(prompt) >= engine.context_length:
            raise PayloadTooLargeError(
                f"the prompt of {len(prompt)} tokens leaves no room in the model's context",
                field="prompt",
                expected=f"fewer than {engine.context_length} tokens",
                got=f"{len(prompt)} tokens",
                hint="shorten the prompt or the conversation",
            )
        plan = cast("_Plan", prepared.context)
        most = min(plan.max_tokens, engine.context_length - len(prompt))
        return Continuation(self._vocabulary, self._ends, prompt, plan, most)

    def postprocess(self, prepared: Prepared, computed: Generated) -> dict[str, Any]:
        """``{"text", "finish_reason", "usage": {"prompt_tokens", "completion_tokens"}}``."""
        return computed.as_result()

    def encode(self, text: str, *, control: bool, begin: bool) -> list[int]:
        """Tokens of ``text`` as the framework's tokenizer has them; see :meth:`mlos.engines.Vocabulary.encode`.

        Like there, control tokens are found first, and only what stands between them is normalised.
        """
        pieces, at = [], 0
        for mark in self._control.finditer(text) if control and self._control is not None else ():
            pieces += [self._normal(text[at : mark.start()]), mark[0]]
            at = mark.end()
        pieces.append(self._normal(text[at:]))
        return self._vocabulary.encode("".join(pieces), control=control, begin=begin)

    def _normal(self, text: str) -> str:
        return text if self._form is None else unicodedata.normalize(self._form, text)

    def refuse_control(self, text: str, field: str, hint: str) -> None:
        """Refuse a person's text that spells a control token, by which it could pass for the template's own.

        Raises:
            InvalidInputError: naming the token.
        """
        found = None
        if self._control is not None:  # which a text may come to spell when it is normalised
            found = self._control.search(text) or self._control.search(self._normal(text))
        if found is not None:
            raise InvalidInputError(
                f"{field} spells the model's control token {found[0]!r}",
                field=field,
                expected="text without control tokens",
                got=repr(found[0]),
                hint=hint,
            )

    def _prepared(self, tokens: list[int], request: InferenceRequest, more: Known | None = None) -> Prepared:
        """``tokens`` as the model's input of shape (1, tokens), with what the request's parameters ask for."""
        given = check_parameters(request, {**KNOWN, **(more or {})})
        names = Sampling.__dataclass_fields__
        sampling = Sampling(**{name: value for name, value in given.items() if name in names})
        stops = given.get("stop", ())
        plan = _Plan(
            sampling,
            given.get("max_tokens", MAX_TOKENS),
            (stops,) if isinstance(stops, str) else tuple(stops),
        )
        return Prepared({"input_ids": np.array([tokens], dtype=np.int64)}, (), plan)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _are_stops(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return (
        isinstance(texts, list)
        and len(texts) <= _MOST_STOPS
        and all(isinstance(text, str) and 1 <= len(text) <= _LONGEST_STOP for text in texts)
    )
