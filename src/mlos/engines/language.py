"""What an engine of language models can do beside running tensors: spell, and continue a sequence of tokens."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mlos.engines.engine import Engine
from mlos.errors import MlosError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution.

    With ``temperature`` 0 it is the likeliest (greedy) and nothing else counts but the penalties; else the
    temperature comes first, and the others choose from the distribution that it makes. ``top_k`` 0
    and ``top_p`` 1 leave all tokens in; ``min_p`` drops those less likely than that share of the likeliest. A
    ``repetition_penalty`` of 1 and additive penalties of 0 change nothing. The same ``seed`` on the same host
    gives the same tokens, but for near ties beside other sequences; None draws one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


class Vocabulary(Protocol):
    """How a language model spells. It may be used from several threads at once."""

    @property
    def control(self) -> Mapping[str, int]:
        """Text of each control token, such as the end of a turn, to its number."""
        ...

    @property
    def bos(self) -> str:
        """Text of the token that begins a sequence; empty if there is none."""
        ...

    @property
    def eos(self) -> str:
        """Text of the token that ends a sequence; empty if there is none."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that makes one text of a conversation, where the model has one."""
        ...

    def encode(self, text: str, *, control: bool, begin: bool) -> list[int]:
        """Tokens of ``text``.

        With ``control``, the texts of control tokens become these tokens; else they are text like any other.
        With ``begin``, what the model wants at the beginning of a sequence comes first.
        """
        ...

    def piece(self, token: int) -> bytes:
        """What a token adds to the text, in UTF-8, perhaps part of a character; nothing for a control token."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the model says with this token that it has finished."""
        ...


@runtime_checkable
class LanguageModel(Engine, Protocol):
    """An opened language model. Its :meth:`generate` continues one sequence at a time."""

    @property
    def context_length(self) -> int:
        """The most tokens of a sequence, prompt and answer together."""
        ...

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, check: Callable[[], None]
    ) -> Generator[int, None, None]:
        """Continue ``prompt`` token by token, including the one that ends, until nobody asks for more.

        ``check`` is called at least once a token, and often while the prompt is read; what it raises ends the
        generation. Where the context is full the iterator ends.

        Raises:
            InvalidInputError: if the prompt is empty or leaves no room in the context.
            WorkerError: if the engine itself failed.
        """
        ...


class Places(Protocol):
    """Places for sequences that are continued together, each step computing for all of them.

    The last bits of what is computed depend on what is computed beside it, so a sequence is what it would be
    alone up to its tolerance. How a sequence takes a place is each engine's own. One thread uses it.
    """

    @property
    def free(self) -> int:
        """Places that nobody has."""
        ...

    def step(self, check: Callable[[], None]) -> dict[int, int | MlosError]:
        """The next token of each place whose prompt is read, or the error that it ended with.

        A place with an error is to be left. ``check`` is called every few milliseconds, or between runs of an
        engine that cannot be interrupted; what it raises is raised here, and nothing of the step is kept.
        """
        ...

    def leave(self, place: int) -> None:
        """Give up a place."""
        ...


class Sequences(Places, Protocol):
    """Places for sequences of a language model, which compute for all of them at once.

    A sequence takes a place, reads its prompt over some steps, and then has a token at every step, until it has
    had as many as were asked for. What has been read for it is kept until its room is needed; a prompt that
    begins as another did, one still there or one that has left, is read from where it differs.
    """

    def join(self, prompt: Sequence[int], sampling: Sampling, most: int) -> int | None:
        """Take a place for ``prompt`` and up to ``most`` tokens more; None while there is no room for them.

        Where nobody has a place there is room for every prompt.

        Raises:
            InvalidInputError: if the prompt is empty or leaves no room in the context.
        """
        ...


@runtime_checkable
class Shared(Protocol):
    """An engine whose model may continue several sequences together."""

    def together(self, most: int) -> Places | None:
        """Places for up to ``most`` sequences; None where this model continues one at a time.

        Raises:
            WorkerError: if there is no memory for them.
        """
        ...


@runtime_checkable
class SharedLanguageModel(LanguageModel, Shared, Protocol):
    """A language model that may."""

    def together(self, most: int) -> Sequences | None:
        """See :class:`Shared`."""
        ...
