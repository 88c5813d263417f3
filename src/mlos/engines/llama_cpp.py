"""llama.cpp on the CPU: GGUF files, a sequence at a time or several in common steps."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mlos.engines.files import file_of
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.engines.language import Sampling
from mlos.engines.llama_cpp_context import (
    CHECK_SECONDS,
    CHUNK,
    MAX_CONTEXT,
    Context,
    Sampler,
    Watch,
    check_tokens,
    checked_prompt,
)
from mlos.engines.llama_cpp_library import Model, library, version
from mlos.engines.llama_cpp_together import Together, can_share
from mlos.errors import PayloadTooLargeError, RefusedError, UsageError
from mlos.model import Artifact, ModelFormat, Tensors, TensorSpec

TOKENS, LOGITS = "input_ids", "logits"
MAX_VALUES = 1 << 25
"""Most logits of one run, 128 MiB of them."""


def language_model(path: str, precision: str, vocabulary: int) -> Artifact:
    """The artifact that the GGUF file ``path`` of a causal language model makes: what it takes and gives."""
    return Artifact(
        format="gguf",
        precision=precision,
        path=path,
        inputs=(TensorSpec(name=TOKENS, dtype="INT64", shape=("batch", "sequence")),),
        outputs=(TensorSpec(name=LOGITS, dtype="FP32", shape=("batch", "sequence", vocabulary)),),
    )


class LlamaCppEngine:
    """A GGUF file of a causal language model.

    It takes ``input_ids`` (batch, sequence) and gives ``logits`` (batch, sequence, vocabulary), one row after
    another, so that none depends on its neighbours. :meth:`generate` keeps what it read last, and a prompt that
    begins alike is read from where it differs. :meth:`together` continues several in common steps. A file of
    precision F32 is computed as the framework does it, with a cache in fp32, plain attention, and a sequence at
    a time.
    """

    name: ClassVar[str] = "llama.cpp"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"gguf"})

    def __init__(self, model: Model, artifact: Artifact, threads: int) -> None:
        self._model = model
        self._artifact = artifact
        self._threads = threads
        self._exact = artifact.precision == "F32"
        self._turn = threading.Lock()
        trained = int(library().llama_model_n_ctx_train(model.pointer))
        self._context_length = min(trained, MAX_CONTEXT)

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Load the GGUF file of ``artifact`` from ``folder``; its weights are mapped, not copied.

        Raises:
            MissingExtraError: if llama.cpp is not installed.
            RefusedError: if the file lies outside ``folder``, is not there, cannot be loaded, is no causal
                language model, or takes and gives other tensors than the artifact declares.
        """
        if threads < 1:
            raise UsageError("an engine needs a thread", field="threads", expected=">= 1", got=str(threads))
        api = library()
        model = Model(file_of(folder, artifact))
        if not api.llama_model_has_decoder(model.pointer) or api.llama_model_has_encoder(model.pointer):
            raise RefusedError(
                f"{artifact.path} is no causal language model",
                field="general.architecture",
                expected="a model that continues a sequence",
                got=model.text("general.architecture"),
            )
        expected = (((TOKENS, 2),), ((LOGITS, model.size),))
        got = (
            tuple((spec.name, len(spec.shape)) for spec in artifact.inputs),
            tuple((spec.name, spec.shape[-1] if spec.shape else 0) for spec in artifact.outputs),
        )
        if got != expected:
            raise RefusedError(
                f"{artifact.path} takes or gives other tensors than its manifest declares",
                field=artifact.path,
                expected=f"{TOKENS} [batch, sequence] and {LOGITS} [batch, sequence, {model.size}]",
                got=", ".join(
                    f"{spec.name} {list(spec.shape)}" for spec in (*artifact.inputs, *artifact.outputs)
                ),
            )
        return cls(model, artifact, threads)

    @property
    def version(self) -> str:
        """Version of llama.cpp's bindings."""
        return version()

    @property
    def context_length(self) -> int:
        """The most tokens of a sequence: the model's own number, at most :data:`MAX_CONTEXT`."""
        return self._context_length

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Logits at every position, in fp32.

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes, or a token is out of range.
            PayloadTooLargeError: if they would be more than :data:`MAX_VALUES` logits, or a row is longer than
                the context.
            WorkerError: if llama.cpp failed.
        """
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if not wanted:
            return {}
        tokens = inputs[TOKENS]
        rows, length = tokens.shape
        check_tokens(self._model, tokens, f"inputs.{TOKENS}")
        if tokens.size * self._model.size > MAX_VALUES or length > self._context_length:
            most = min(MAX_VALUES // self._model.size, max(rows, 1) * self._context_length)
            raise PayloadTooLargeError(
                f"{rows} rows of {length} tokens are more than the model answers at a time",
                field=f"inputs.{TOKENS}",
                expected=f"at most {most} tokens in all, {self._context_length} in a row",
                got=f"{tokens.size} tokens",
                hint="send fewer rows or shorter ones",
            )
        logits = np.empty((rows, length, self._model.size), dtype=np.float32)
        if not logits.size:
            return {LOGITS: logits}
        with self._turn:
            context = self._context(length)
            for row, answer in zip(tokens, logits, strict=True):
                _read(context, row, answer)
        return {LOGITS: logits}

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, check: Callable[[], None]
    ) -> Generator[int, None, None]:
        """See :meth:`mlos.engines.LanguageModel.generate`. Others wait until the iterator is closed."""
        return self._continue(checked_prompt(self._model, self._context_length, prompt), sampling, check)

    def together(self, most: int) -> Together | None:
        """See :meth:`mlos.engines.SharedLanguageModel.together`.

        A file of precision F32 is computed alone, for its answers are compared bit by bit; so is a model whose
        memory cannot forget a part.
        """
        if most < 2 or self._exact or not can_share(self._model):
            assert (
                self._sequence is not None
            )  # made now, so that want of memory is known when a model is loaded
            return None
        return Together(self._model, self._context_length, self._threads, most)

    @cached_property
    def _sequence(self) -> _Sequence:
        return _Sequence(self._context(self._context_length), self._context_length)

    def _continue(
        self, prompt: list[int], sampling: Sampling, check: Callable[[], None]
    ) -> Generator[int, None, None]:
        while not self._turn.acquire(timeout=CHECK_SECONDS):
            check()
        try:
            sampler = Sampler(sampling, prompt, self._model.size)
            self._sequence.read(prompt, check)
            for left in range(self._context_length - len(prompt), 0, -1):
                check()
                token = sampler.choose(self._sequence.context)
                yield token
                if left > 1:
                    self._sequence.append(token)
        finally:
            self._turn.release()

    def _context(self, length: int) -> Context:
        return Context(self._model, length, self._threads, exact=self._exact)


class _Sequence:
    """The sequence that is generated, and the tokens the context holds of it.

    The last bits of what is computed for a token depend on how many are read with it. So prompts are read in
    chunks that begin at the same places always, and of what is held only whole chunks serve another prompt: an
    answer depends on its prompt alone, never on what was asked before.
    """

    def __init__(self, context: Context, length: int) -> None:
        self.context = context
        self._held: list[int] = []
        self._whole = 0
        """How many of them were read in whole chunks."""
        self._next = (library().llama_token * min(length, CHUNK))()

    def read(self, prompt: list[int], check: Callable[[], None]) -> None:
        """Hold exactly ``prompt``; what was held before stays as far as it is the same.

        ``check`` is called every few milliseconds; what it raises ends the reading and is raised here.
        """
        api, memory, chunk = library(), self.context.memory, len(self._next)
        same = 0  # at least one token is read again: the logits after the last are asked for
        while same < min(self._whole, len(self._held), len(prompt) - 1) and self._held[same] == prompt[same]:
            same += 1
        same -= same % chunk
        if not api.llama_memory_seq_rm(memory, 0, same, -1):  # a memory that cannot forget a part
            api.llama_memory_clear(memory, False)
            same = 0
        del self._held[same:]
        watch = Watch(check)
        api.llama_set_abort_callback(self.context.pointer, watch.callback, None)
        try:
            for at in range(same, len(prompt), chunk):
                if not self._decode(prompt[at : at + chunk]):
                    break
        finally:
            self._whole = len(self._held) - len(self._held) % chunk
            api.llama_set_abort_callback(self.context.pointer, api.ggml_abort_callback(), None)
        if watch.raised is not None:
            raise watch.raised

    def append(self, token: int) -> None:
        """Hold ``token`` too."""
        self._decode([token])

    def _decode(self, tokens: list[int]) -> bool:
        """Read tokens behind those held; false if it was aborted, after which nothing of them is held."""
        api = library()
        self._next[: len(tokens)] = tokens
        done = False
        try:
            done = self.context.decode(api.llama_batch_get_one(self._next, len(tokens)))
        finally:
            if done:
                self._held += tokens
            elif not api.llama_memory_seq_rm(self.context.memory, 0, len(self._held), -1):
                api.llama_memory_clear(self.context.memory, False)
                self._held.clear()
        return done


def _read(context: Context, tokens: NDArray[Any], answer: NDArray[np.float32]) -> None:
    """Fill ``answer`` (tokens, vocabulary) with the logits after each of ``tokens``, from the beginning."""
    api = library()
    api.llama_memory_clear(context.memory, False)
    batch = api.llama_batch_init(min(len(tokens), CHUNK), 0, 1)
    try:
        for start in range(0, len(tokens), CHUNK):
            chunk = tokens[start : start + CHUNK]
            batch.n_tokens = len(chunk)
            for at, token in enumerate(chunk):
                batch.token[at] = int(token)
                batch.pos[at] = start + at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = True
            context.decode(batch)
            rows = np.ctypeslib.as_array(
                ctypes.cast(api.llama_get_logits(context.pointer), ctypes.POINTER(ctypes.c_float)),
                shape=(len(chunk), answer.shape[1]),
            )
            answer[start : start + len(chunk)] = rows
    finally:
        api.llama_batch_free(batch)
