"""Sequences of an encoder-decoder that are under way, by themselves or together.

A decoder's step computes rows whose own caches are of one length, for nothing tells it of padding there. So the
sequences that are at one length, as those are that began between the same two steps, go on as one batch, a
cohort; their sources, which may differ in length, are padded and masked. A step computes cohort after cohort.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlos.errors import MlosError, NoRoomError, WorkerError
from mlos.model import Tensors

MASK = "attention_mask"
ENCODE_SECONDS = 0.5
"""How long a step goes on encoding for those that have joined: others stand still meanwhile."""
Cache: TypeAlias = dict[str, NDArray[Any]]
Choose: TypeAlias = Callable[[NDArray[Any]], int]
"""The next token, by the model's scores (vocabulary,) of each. It may be asked twice for the same one."""


@dataclass
class Decoding:
    """Sequences under way: what the encoder gave, and the decoder's cache. Rows are sequences."""

    fixed: Cache
    past: Cache

    @property
    def length(self) -> int:
        """Of the decoder's cache: how many tokens it has read."""
        return int(next(iter(self.past.values())).shape[2])

    def select(self, rows: NDArray[np.int64]) -> None:
        """Go on with the cache of these rows in this order; a row may come several times.

        The encoder's part is not moved: each row and the one it continues must be of the same source.
        """
        self.past = _rows(self.past, rows)

    def only(self, rows: Sequence[int]) -> Decoding:
        """These rows, their sources no longer than the longest of them."""
        fixed = _rows(self.fixed, rows)
        longest = int(fixed[MASK].sum(axis=1).max())
        return Decoding(
            {name: _of_length(name, tensor, longest) for name, tensor in fixed.items()}, _rows(self.past, rows)
        )

    @staticmethod
    def joined(several: Sequence[Decoding]) -> Decoding:
        """The rows of all, whose caches must be of one length; shorter sources are padded, and masked there."""
        longest = max(each.fixed[MASK].shape[1] for each in several)
        return Decoding(
            {
                name: np.concatenate([_of_length(name, each.fixed[name], longest) for each in several])
                for name in several[0].fixed
            },
            {name: np.concatenate([each.past[name] for each in several]) for name in several[0].past},
        )


class Decoder(Protocol):
    """What computes them."""

    def begin(self, inputs: Tensors, copies: int = 1) -> Decoding:
        """Encode a batch, and be ready to decode ``copies`` sequences of each of its rows, side by side."""
        ...

    def following(self, decoding: Decoding, tokens: NDArray[Any]) -> tuple[NDArray[Any], Cache]:
        """Logits (batch, target, vocabulary) after each of ``tokens`` (batch, target), and the cache with them.

        ``decoding`` stays as it is.
        """
        ...


@dataclass(eq=False)
class _Sequence:
    """``token`` is read next."""

    place: int
    inputs: Tensors
    token: int
    choose: Choose


@dataclass(eq=False)
class _Cohort:
    """The sequences of the rows of ``decoding``."""

    members: list[_Sequence]
    decoding: Decoding

    def only(self, rows: Sequence[int]) -> _Cohort:
        return _Cohort([self.members[row] for row in rows], self.decoding.only(rows))


class Cohorts:
    """Places for ``most`` sequences of an encoder-decoder: see :class:`mlos.engines.Places`."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self._decoder, self._most = decoder, most
        self._taken: dict[int, _Sequence] = {}
        self._joining: list[_Sequence] = []
        self._cohorts: list[_Cohort] = []
        self._unbegun: dict[int, MlosError] = {}
        """Why the encoder failed, by place: kept until a step is done, since one may be given up."""

    @property
    def free(self) -> int:
        """See :class:`mlos.engines.Places`."""
        return self._most - len(self._taken)

    def join(self, inputs: Tensors, first: int, choose: Choose) -> int | None:
        """Take a place for the answer to the encoder's ``inputs``, of one row; None where all are taken.

        It begins with the token ``first``, and goes on with what ``choose`` says until the place is left.
        """
        place = next((number for number in range(self._most) if number not in self._taken), None)
        if place is not None:
            self._taken[place] = sequence = _Sequence(place, inputs, first, choose)
            self._joining.append(sequence)
        return place

    def step(self, check: Callable[[], None]) -> dict[int, int | MlosError]:
        """See :class:`mlos.engines.Places`."""
        self._cohorts = [self._present(cohort) for cohort in self._cohorts]
        self._begin(check)
        computed = [each for cohort in _together(self._cohorts) for each in self._computed(cohort, check)]
        self._cohorts = [cohort for cohort, _ in computed]
        outcomes: dict[int, int | MlosError] = {**self._unbegun}
        self._unbegun.clear()
        for cohort, given in computed:
            if isinstance(given, MlosError):
                outcomes |= {member.place: given for member in cohort.members}
                continue
            logits, cohort.decoding.past = given
            for member, scores in zip(cohort.members, logits[:, -1], strict=True):
                outcomes[member.place] = _chosen(member, scores)
        return outcomes

    def leave(self, place: int) -> None:
        """See :class:`mlos.engines.Places`."""
        left = self._taken.pop(place)
        self._unbegun.pop(place, None)
        self._joining = [each for each in self._joining if each is not left]
        # No row is moved here, which takes memory that there may not be: the next step does that, once for all.
        self._cohorts = [each for each in self._cohorts if any(map(self._is_present, each.members))]

    def _is_present(self, member: _Sequence) -> bool:
        return self._taken.get(member.place) is member

    def _present(self, cohort: _Cohort) -> _Cohort:
        """Those of a cohort that have not left."""
        rows = [row for row, member in enumerate(cohort.members) if self._is_present(member)]
        return cohort if len(rows) == len(cohort.members) else cohort.only(rows)

    def _begin(self, check: Callable[[], None]) -> None:
        """Encode for those that have joined, as far as there is time."""
        due = time.monotonic() + ENCODE_SECONDS
        while self._joining:
            check()
            sequence = self._joining.pop(0)
            try:
                self._cohorts.append(_Cohort([sequence], self._decoder.begin(sequence.inputs)))
            except (MlosError, MemoryError) as error:
                self._unbegun[sequence.place] = _as_error(error)
            if time.monotonic() >= due:
                break

    def _computed(
        self, cohort: _Cohort, check: Callable[[], None]
    ) -> list[tuple[_Cohort, tuple[NDArray[Any], Cache] | MlosError]]:
        """A cohort and what follows. Where the engine fails, sequence by sequence, so that only one fails."""
        check()
        tokens = np.array([[member.token] for member in cohort.members], dtype=np.int64)
        try:
            return [(cohort, self._decoder.following(cohort.decoding, tokens))]
        except (MlosError, MemoryError) as error:
            if len(cohort.members) == 1:
                return [(cohort, _as_error(error))]
        return [
            each for row in range(len(cohort.members)) for each in self._computed(cohort.only([row]), check)
        ]


def _chosen(member: _Sequence, scores: NDArray[Any]) -> int | MlosError:
    try:
        member.token = member.choose(scores)
    except Exception as error:  # a bug that one answer finds
        traceback.print_tb(error.__traceback__)  # its place alone: its message may quote the request
        return WorkerError(f"no token can be chosen: {type(error).__name__}")
    return member.token


def _as_error(error: MlosError | MemoryError) -> MlosError:
    if isinstance(error, MlosError):
        return error
    return NoRoomError("the answer needs more memory than the model's worker has", hint="send a shorter text")


def _together(cohorts: Sequence[_Cohort]) -> list[_Cohort]:
    """Those whose caches are of one length as one, if there is memory for it."""
    alike: dict[int, list[_Cohort]] = {}
    for cohort in cohorts:
        alike.setdefault(cohort.decoding.length, []).append(cohort)
    return [whole for several in alike.values() for whole in _joined(several)]


def _joined(several: list[_Cohort]) -> list[_Cohort]:
    if len(several) == 1:
        return several
    try:
        decoding = Decoding.joined([cohort.decoding for cohort in several])
    except MemoryError:
        return several
    return [_Cohort([member for cohort in several for member in cohort.members], decoding)]


def _rows(tensors: Cache, rows: Sequence[int] | NDArray[np.int64]) -> Cache:
    return {name: np.ascontiguousarray(tensor[rows]) for name, tensor in tensors.items()}


def _of_length(name: str, tensor: NDArray[Any], length: int) -> NDArray[Any]:
    """Cut or padded at the end of its axis of the source: the second of the mask, the third of all else."""
    axis = 1 if name == MASK else 2
    more = max(0, length - tensor.shape[axis])
    widths = [(0, more if at == axis else 0) for at in range(tensor.ndim)]
    return np.ascontiguousarray(np.pad(tensor, widths).take(range(length), axis))
