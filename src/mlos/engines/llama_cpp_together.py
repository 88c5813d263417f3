"""Several sequences of llama.cpp in common steps, over one cache whose cells they share.

A step is one batch: a token of each sequence that is being written, and pieces of the prompts that are still to
be read. The weights are read from memory once for all of them, which is what a token costs on a processor.
Beside others prompts are read in small pieces, so that nobody waits long for a step.

The cache holds a bounded number of cells, one for a token. A sequence joins when its prompt and all that it may
write fit beside those that are there, so none is cut short or sent away for want of cells. What has been read
for a sequence that has left stays until its cells are needed.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mlos.engines.language import Sampling
from mlos.engines.llama_cpp_context import CHUNK, Context, Sampler, Watch, checked_prompt
from mlos.engines.llama_cpp_library import Model, library
from mlos.errors import MlosError, WorkerError

MAX_CACHE_BYTES = 256 << 20
"""Most memory of the cache, where one sequence of full length does not need more."""
BESIDE = 32
"""Tokens of prompts that a step reads where there is more than one sequence."""
_ELEMENT_BYTES = 2
"""Of the cache: numbers of half precision."""


@dataclass(eq=False)
class _Place:
    """``held`` are the tokens whose keys and values the cache has, ``ahead`` those to be read next.

    It is taken while it has a sampler, and then may come to need ``reserved`` cells.
    """

    number: int
    held: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)
    sampler: Sampler | None = None
    reserved: int = 0
    left: int = 0
    """When it was left last: a higher number is later."""

    @property
    def unfinished(self) -> bool:
        """Whether it is taken and has not written all that it was to write."""
        return self.sampler is not None and len(self.held) + len(self.ahead) < self.reserved

    def alike(self, prompt: list[int]) -> int:
        """How many tokens at the beginning of ``prompt`` it holds; never all, for one must be computed."""
        pairs = zip(self.held, prompt[:-1], strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class Together:
    """Places for ``most`` sequences of a model: see :class:`mlos.engines.Sequences`."""

    def __init__(self, model: Model, context_length: int, threads: int, most: int) -> None:
        self.cells = cells_for(model, context_length, most)
        self._model, self._context_length = model, context_length
        self._context = Context(model, self.cells, threads, sequences=most)
        self._places = [_Place(number) for number in range(most)]
        self._batch = library().llama_batch_init(CHUNK + most, 0, 1)
        weakref.finalize(self, library().llama_batch_free, self._batch)
        self._clock = itertools.count(1)

    @property
    def free(self) -> int:
        """See :class:`mlos.engines.Places`."""
        return sum(place.sampler is None for place in self._places)

    def join(self, prompt: Sequence[int], sampling: Sampling, most: int) -> int | None:
        """See :class:`mlos.engines.Sequences`."""
        tokens = checked_prompt(self._model, self._context_length, prompt)
        need = min(len(tokens) + most, self._context_length)
        free = [place for place in self._places if place.sampler is None]
        if not free or need > self.cells - sum(place.reserved for place in self._places):
            return None
        sampler = Sampler(sampling, tokens, self._model.size)
        alike = {place.number: self._alike(place, tokens) for place in self._places}
        # The place that loses least of what it holds, and of those the one that was left first.
        place = min(free, key=lambda each: (len(each.held) - alike[each.number], each.left))
        like = max(self._places, key=lambda each: alike[each.number])
        same = alike[like.number]
        if same > alike[place.number]:
            self._keep(place, 0)
            library().llama_memory_seq_cp(self._context.memory, like.number, place.number, 0, same)
            place.held = tokens[:same]
        else:
            self._keep(place, same)
        place.ahead, place.sampler, place.reserved = tokens[len(place.held) :], sampler, need
        self._make_room()
        return place.number

    def step(self, check: Callable[[], None]) -> dict[int, int | MlosError]:
        """See :class:`mlos.engines.Places`."""
        pieces = self._pieces()
        return self._compute(pieces, check) if pieces else {}

    def leave(self, place: int) -> None:
        """See :class:`mlos.engines.Places`."""
        left = self._places[place]
        left.ahead, left.sampler, left.reserved, left.left = [], None, 0, next(self._clock)

    def _alike(self, place: _Place, prompt: list[int]) -> int:
        """How much of ``prompt`` can be had from a place.

        Nothing if its beginning is gone: where a layer sees only the last tokens (a sliding window), the
        library gives away the cells of those before them.
        """
        first = library().llama_memory_seq_pos_min(self._context.memory, place.number)
        return place.alike(prompt) if first == 0 else 0

    def _pieces(self) -> list[tuple[_Place, int]]:
        """Who reads how many tokens in the next step.

        Those that read prompts have equal shares; what one does not need is there for longer ones.
        """
        taken = [place for place in self._places if place.unfinished]
        pieces = [(place, 1) for place in taken if len(place.ahead) == 1]
        reading = sorted((place for place in taken if len(place.ahead) > 1), key=lambda each: len(each.ahead))
        budget = CHUNK if len(taken) == 1 else BESIDE
        for before, place in enumerate(reading):
            piece = min(len(place.ahead), max(1, budget // (len(reading) - before)))
            budget -= piece
            pieces.append((place, piece))
        return pieces

    def _compute(
        self, pieces: list[tuple[_Place, int]], check: Callable[[], None]
    ) -> dict[int, int | MlosError]:
        """Compute a step; where the library fails, place by place, so that only what is wrong fails."""
        last, watch = self._fill(pieces), Watch(check)
        done, failed = self._decode(watch)
        if not done or watch.raised is not None:
            self._forget(pieces)
        if watch.raised is not None:
            raise watch.raised
        if failed is not None and len(pieces) > 1:
            alone = [self._compute([piece], check) for piece in pieces]
            return {number: outcome for each in alone for number, outcome in each.items()}
        if failed is not None:
            return {pieces[0][0].number: failed}
        for place, piece in pieces:
            place.held += place.ahead[:piece]
            del place.ahead[:piece]
        return {
            place.number: self._chosen(place, at)
            for (place, _), at in zip(pieces, last, strict=True)
            if not place.ahead
        }

    def _chosen(self, place: _Place, at: int) -> int:
        assert place.sampler is not None
        token = place.sampler.choose(self._context, at)
        place.ahead = [token]
        return token

    def _fill(self, pieces: Iterable[tuple[_Place, int]]) -> list[int]:
        """Put the pieces into the batch; where in it the last token of each is."""
        batch, last = self._batch, []
        batch.n_tokens = 0
        for place, piece in pieces:
            for number, token in enumerate(place.ahead[:piece]):
                at = batch.n_tokens
                batch.token[at] = token
                batch.pos[at] = len(place.held) + number
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, place.number
                batch.logits[at] = number == len(place.ahead) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        return last

    def _decode(self, watch: Watch) -> tuple[bool, WorkerError | None]:
        """Compute the batch: whether it was, and why not if the library failed."""
        api = library()
        api.llama_set_abort_callback(self._context.pointer, watch.callback, None)
        try:
            return self._context.decode(self._batch), None
        except WorkerError as error:
            return False, error
        finally:
            api.llama_set_abort_callback(self._context.pointer, api.ggml_abort_callback(), None)

    def _forget(self, pieces: Iterable[tuple[_Place, int]]) -> None:
        """Let go what an unfinished step has left in the cache."""
        for place, _ in pieces:
            self._keep(place, len(place.held))

    def _keep(self, place: _Place, tokens: int) -> None:
        """Hold so many tokens and none behind them."""
        library().llama_memory_seq_rm(self._context.memory, place.number, tokens, -1)
        del place.held[tokens:]

    def _make_room(self) -> None:
        """Let go what places hold that were left, first ones first, until what is promised is there."""
        taken = sum(place.reserved for place in self._places)
        left = [place for place in self._places if place.sampler is None]
        for place in sorted(left, key=lambda each: each.left):
            if taken + sum(len(each.held) for each in left) <= self.cells:
                return
            self._keep(place, 0)


def can_share(model: Model) -> bool:
    """Whether sequences of this model may share a context: its memory must be able to forget a part."""
    api = library()
    return not (api.llama_model_is_recurrent(model.pointer) or api.llama_model_is_hybrid(model.pointer))


def cells_for(model: Model, context_length: int, most: int) -> int:
    """Cells of the cache: as ``most`` sequences of full length need, within :data:`MAX_CACHE_BYTES`, for one at
    least.

    A model that turns positions in one way within the length it was trained on and in another beyond (longrope)
    takes the cache's size for the length, so it has cells for one.
    """
    family = model.text("general.architecture")
    if model.text(f"{family}.rope.scaling.original_context_length") is not None:
        return context_length
    return max(context_length, min(most * context_length, MAX_CACHE_BYTES // cell_bytes(model)))


def cell_bytes(model: Model) -> int:
    """Bytes that a token's keys and values take in the cache, in all layers."""
    api, family = library(), model.text("general.architecture")
    width = int(api.llama_model_n_embd(model.pointer)) // max(1, int(api.llama_model_n_head(model.pointer)))
    keys = int(model.text(f"{family}.attention.key_length") or width)
    values = int(model.text(f"{family}.attention.value_length") or width)
    heads = int(api.llama_model_n_head_kv(model.pointer))
    return int(api.llama_model_n_layer(model.pointer)) * heads * (keys + values) * _ELEMENT_BYTES
