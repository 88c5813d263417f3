"""What llama.cpp computes with: a context and its cache, a watch over it, a chain of samplers."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.engines.language import Sampling
from mlos.engines.llama_cpp_library import Model, forget, library, open_context, reason
from mlos.errors import InvalidInputError, WorkerError

MAX_CONTEXT = 4096
"""Most tokens of a sequence: the cache of keys and values is made at once, for all of them."""
CHUNK = 128
"""Tokens that are read at once: more are not faster, and fewer are slower."""
CHECK_SECONDS = 0.02
_ABORTED = 2
_F32, _NO_FLASH_ATTENTION = 0, 0
"""The library's numbers of an element type and of a way to compute attention."""


class Context:
    """Room for up to ``length`` tokens, and what computing them needs: of one sequence, or of ``sequences``.

    Those of several share the room, each taking what it needs.
    """

    def __init__(
        self, model: Model, length: int, threads: int, *, exact: bool = False, sequences: int = 1
    ) -> None:
        api = library()
        options = api.llama_context_default_params()
        options.n_ctx = length
        options.n_batch = options.n_ubatch = min(length, CHUNK) + sequences - 1
        options.n_seq_max = sequences
        options.kv_unified = sequences > 1
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        if exact:
            options.type_k = options.type_v = _F32
            options.flash_attn_type = _NO_FLASH_ATTENTION
        self.model = model  # it must outlive the context
        self.pointer = open_context(model, options, length)
        weakref.finalize(self, api.llama_free, self.pointer)
        self.memory = api.llama_get_memory(self.pointer)

    def decode(self, batch: Any) -> bool:
        """Compute a batch; false if it was aborted.

        Raises:
            WorkerError: if the library failed.
        """
        forget()
        status = library().llama_decode(self.pointer, batch)
        if status not in (0, _ABORTED):
            raise WorkerError(f"llama.cpp failed with status {status}: {reason('it does not say why')}")
        return bool(status == 0)


class Watch:
    """Asks ``check`` every few milliseconds while the library computes, and stops it when that raises."""

    def __init__(self, check: Callable[[], None]) -> None:
        self.raised: BaseException | None = None
        due = time.monotonic()

        def stop(_: Any) -> bool:
            nonlocal due
            if self.raised is None and time.monotonic() >= due:
                try:
                    check()
                except BaseException as error:  # whatever it is: it is raised again behind the library's frames
                    self.raised = error
                due = time.monotonic() + CHECK_SECONDS
            return self.raised is not None

        self.callback = library().ggml_abort_callback(stop)


class Sampler:
    """The library's chain of samplers for one sequence.

    The repetition penalty counts the prompt, the additive penalties only what was written, as their makers do.
    """

    def __init__(self, sampling: Sampling, prompt: list[int], size: int) -> None:
        api = library()
        options = api.llama_sampler_chain_default_params()
        options.no_perf = True
        self._chain = api.llama_sampler_chain_init(options)
        weakref.finalize(self, api.llama_sampler_free, self._chain)  # and with it all that is added
        chosen: list[Any] = []
        if sampling.repetition_penalty != 1:
            repetition = api.llama_sampler_init_penalties(
                size, MAX_CONTEXT, sampling.repetition_penalty, 0.0, 0.0
            )
            for token in prompt:
                api.llama_sampler_accept(repetition, token)
            chosen.append(repetition)
        if sampling.presence_penalty or sampling.frequency_penalty:
            chosen.append(
                api.llama_sampler_init_penalties(
                    size, MAX_CONTEXT, 1.0, sampling.frequency_penalty, sampling.presence_penalty
                )
            )
        if sampling.temperature == 0:
            chosen.append(api.llama_sampler_init_greedy())
        else:
            seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
            # As in the framework, the others choose from the distribution that the temperature has made.
            chosen.append(api.llama_sampler_init_temp(sampling.temperature))
            if sampling.top_k:
                chosen.append(api.llama_sampler_init_top_k(sampling.top_k))
            if sampling.top_p < 1:
                chosen.append(api.llama_sampler_init_top_p(sampling.top_p, 1))
            if sampling.min_p > 0:
                chosen.append(api.llama_sampler_init_min_p(sampling.min_p, 1))
            # The highest number of 32 bits asks the library for a seed of its own choice.
            chosen.append(api.llama_sampler_init_dist(seed % 0xFFFFFFFF))
        for sampler in chosen:
            api.llama_sampler_chain_add(self._chain, sampler)

    def choose(self, context: Context, at: int = -1) -> int:
        """The next token after the one at ``at`` of the batch that ``context`` computed; after its last."""
        return int(library().llama_sampler_sample(self._chain, context.pointer, at))


def checked_prompt(model: Model, context_length: int, prompt: Sequence[int]) -> list[int]:
    """``prompt`` as a list, if it can be continued.

    Raises:
        InvalidInputError: if it is empty, leaves no room in the context, or names a token that is not there.
    """
    tokens = [int(token) for token in prompt]
    if not 0 < len(tokens) < context_length:
        raise InvalidInputError(
            f"a prompt of {len(tokens)} tokens cannot be continued",
            field="prompt",
            expected=f"1 to {context_length - 1} tokens",
            got=f"{len(tokens)} tokens",
        )
    check_tokens(model, np.array(tokens), "prompt")
    return tokens


def check_tokens(model: Model, tokens: NDArray[Any], field: str) -> None:
    """Refuse a token that the vocabulary has not.

    Raises:
        InvalidInputError: naming it.
    """
    wrong = tokens[(tokens < 0) | (tokens >= model.size)]
    if wrong.size:
        raise InvalidInputError(
            f"there is no token {wrong[0]}",
            field=field,
            expected=f"0 to {model.size - 1}",
            got=str(wrong[0]),
        )
