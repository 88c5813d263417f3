"""llama.cpp on the CPU: GGUF files of encoders, whose tokens all see each other."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mlos.engines.files import file_of
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.engines.llama_cpp_library import Model, forget, library, open_context, reason, version
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError, UsageError, WorkerError
from mlos.model import Artifact, ModelFormat, Tensors, TensorSpec

TOKENS, ATTENDED, STATES = "input_ids", "attention_mask", "last_hidden_state"
MAX_VALUES = 1 << 25
"""Most numbers of one run, 128 MiB of them."""
_AXES = ("batch", "sequence")
_UNPOOLED, _NO_FLASH_ATTENTION = 0, 0
"""The library's numbers of a way to pool and of a way to compute attention."""


def encoder(path: str, precision: str, width: int) -> Artifact:
    """The artifact that the GGUF file ``path`` of an encoder makes: hidden states of ``width`` numbers."""
    return Artifact(
        format="gguf",
        precision=precision,
        path=path,
        inputs=tuple(TensorSpec(name=name, dtype="INT64", shape=_AXES) for name in (TOKENS, ATTENDED)),
        outputs=(TensorSpec(name=STATES, dtype="FP32", shape=(*_AXES, width)),),
    )


def is_encoder(artifact: Artifact) -> bool:
    """Whether an artifact is one that :func:`encoder` makes."""
    return artifact.format == "gguf" and [spec.name for spec in artifact.outputs] == [STATES]


class LlamaCppEncoder:
    """A GGUF file of an encoder.

    It takes ``input_ids`` and ``attention_mask`` (batch, sequence) and gives ``last_hidden_state`` (batch,
    sequence, features), one row after another, so that none depends on its neighbours; where the mask is 0 it
    is zero. The library counts all tokens to the first segment of a text.
    """

    name: ClassVar[str] = "llama.cpp"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"gguf"})

    def __init__(self, model: Model, artifact: Artifact, threads: int) -> None:
        api = library()
        self._model, self._artifact, self._threads = model, artifact, threads
        self._width = int(api.llama_model_n_embd(model.pointer))
        self._longest = int(api.llama_model_n_ctx_train(model.pointer))
        self._turn = threading.Lock()

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Load the GGUF file of ``artifact`` from ``folder``; its weights are mapped, not copied.

        Raises:
            MissingExtraError: if llama.cpp is not installed.
            RefusedError: if the file lies outside ``folder``, is not there, cannot be loaded, or gives other
                tensors than the artifact declares.
        """
        if threads < 1:
            raise UsageError("an engine needs a thread", field="threads", expected=">= 1", got=str(threads))
        opened = cls(Model(file_of(folder, artifact)), artifact, threads)
        made = encoder(artifact.path or "", artifact.precision, opened._width)
        if (artifact.inputs, artifact.outputs) != (made.inputs, made.outputs):
            raise RefusedError(
                f"{artifact.path} takes or gives other tensors than its manifest declares",
                field=artifact.path,
                expected=f"{STATES} {list(made.outputs[0].shape)}",
                got=", ".join(f"{spec.name} {list(spec.shape)}" for spec in artifact.outputs),
            )
        return opened

    @property
    def version(self) -> str:
        """Version of llama.cpp's bindings."""
        return version()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Hidden states of each token, in fp32.

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes, or a token is out of range.
            PayloadTooLargeError: if they would be more than :data:`MAX_VALUES` numbers, or a row is longer than
                the model's positions.
            WorkerError: if llama.cpp failed.
        """
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if not wanted:
            return {}
        tokens, attended = inputs[TOKENS], inputs[ATTENDED].astype(bool)
        self._check(tokens)
        states = np.zeros((*tokens.shape, self._width), dtype=np.float32)
        if states.size:
            with self._turn:
                context = self._context(tokens.shape[1])
                for row, mask, answer in zip(tokens, attended, states, strict=True):
                    if mask.any():
                        answer[mask] = self._read(context.pointer, row[mask])
        return {STATES: states}

    def _check(self, tokens: NDArray[Any]) -> None:
        wrong = tokens[(tokens < 0) | (tokens >= self._model.size)]
        if wrong.size:
            raise InvalidInputError(
                f"there is no token {wrong[0]}",
                field=f"inputs.{TOKENS}",
                expected=f"0 to {self._model.size - 1}",
                got=str(wrong[0]),
            )
        if tokens.size * self._width > MAX_VALUES or tokens.shape[1] > self._longest:
            raise PayloadTooLargeError(
                f"{tokens.shape[0]} rows of {tokens.shape[1]} tokens are more than the model reads at a time",
                field=f"inputs.{TOKENS}",
                expected=f"at most {MAX_VALUES // self._width} tokens in all, {self._longest} in a row",
                got=f"{tokens.size} tokens",
                hint="send fewer rows or shorter ones",
            )

    def _context(self, length: int) -> _Context:
        return _Context(self._model, length, self._threads, exact=self._artifact.precision == "F32")

    def _read(self, context: Any, tokens: NDArray[Any]) -> NDArray[np.float32]:
        """The states after each of ``tokens``, which are one text."""
        api = library()
        batch = api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for at, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = int(token), at
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, 0
                batch.logits[at] = True
            forget()
            status = api.llama_encode(context, batch)
            if status != 0:
                raise WorkerError(f"llama.cpp failed with status {status}: {reason('it does not say why')}")
            found = ctypes.cast(api.llama_get_embeddings(context), ctypes.POINTER(ctypes.c_float))
            return np.array(np.ctypeslib.as_array(found, shape=(len(tokens), self._width)))
        finally:
            api.llama_batch_free(batch)


class _Context:
    """Room for one text of up to ``length`` tokens: all of them are computed at once."""

    def __init__(self, model: Model, length: int, threads: int, *, exact: bool) -> None:
        api = library()
        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = length
        options.n_seq_max = 1
        options.n_threads = options.n_threads_batch = threads
        options.no_perf = True
        options.embeddings = True
        options.pooling_type = _UNPOOLED
        if exact:
            options.flash_attn_type = _NO_FLASH_ATTENTION
        self.model = model  # it must outlive the context
        self.pointer = open_context(model, options, length)
        weakref.finalize(self, api.llama_free, self.pointer)
