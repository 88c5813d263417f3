"""A model of two graphs, an encoder and a decoder with a key/value cache, as one engine.

The encoder is run once. It gives, for each layer ``i`` of the decoder, the keys and values that the decoder
attends to (``cross.i.key`` and ``cross.i.value``, each (batch, heads, source, features)), so that no step
computes them again. The decoder takes the next tokens (``decoder_input_ids``, (batch, target)), the encoder's
``attention_mask``, those keys and values, and its own of all tokens before (``past.i.key``, ``past.i.value``,
each (batch, heads, past, features); past is 0 at first). It gives ``logits`` (batch, target, vocabulary), and
its keys and values with the new tokens' behind (``present.i.key``, ``present.i.value``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from mlos.engines.decoding import MASK, Cache, Cohorts, Decoding
from mlos.engines.engine import Engine
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import Artifact, ModelFormat, Tensors

PARTS = frozenset({"encoder", "decoder"})
"""What the parts of such a model are called."""
DECODER_INPUT = "decoder_input_ids"
LOGITS = "logits"
MAX_VALUES = 1 << 25
"""Most logits of one run, 128 MiB of them."""
MAX_STEPS = 512
"""Most steps of one run, which nobody can interrupt."""
_CROSS, _PAST, _PRESENT = "cross.", "past.", "present."


class EncoderDecoder:
    """Two opened graphs behind the protocol of one engine.

    As a whole it takes the encoder's inputs and ``decoder_input_ids``, and gives the ``logits`` at each of
    them, computed token by token through the cache as generation does.
    """

    formats: ClassVar[frozenset[ModelFormat]] = frozenset()

    def __init__(self, artifact: Artifact, parts: Mapping[str, Engine]) -> None:
        if set(parts) != PARTS:
            raise RefusedError(
                "a model of several graphs is an encoder and a decoder here",
                field="artifact.parts",
                expected="encoder, decoder",
                got=", ".join(parts),
            )
        self._artifact = artifact
        self._encoder, self._decoder = parts["encoder"], parts["decoder"]
        self._past = [spec for spec in artifact.parts["decoder"].inputs if spec.name.startswith(_PAST)]

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Not how it comes about: :func:`mlos.engines.open_model` opens the parts."""
        raise RefusedError("a model of several graphs is opened part by part", field="artifact.parts")

    @property
    def name(self) -> str:
        """The engine that computes the parts."""
        return self._decoder.name

    @property
    def version(self) -> str:
        """Version of that engine's library."""
        return self._decoder.version

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """See :class:`mlos.engines.Engine`."""
        check_inputs(self._artifact.inputs, inputs)
        wanted = [spec.name for spec in self._artifact.outputs] if outputs is None else list(outputs)
        check_outputs(self._artifact.outputs, wanted)
        if not wanted:
            return {}
        self._check_size(inputs[DECODER_INPUT])
        decoding = self.begin({name: tensor for name, tensor in inputs.items() if name != DECODER_INPUT})
        columns = np.split(inputs[DECODER_INPUT], inputs[DECODER_INPUT].shape[1], axis=1)
        return {LOGITS: np.concatenate([self.step(decoding, column) for column in columns], axis=1)}

    def _check_size(self, tokens: NDArray[Any]) -> None:
        """Refuse what asks for no step, or for more than a request may take before it can be given up."""
        rows, target = tokens.shape
        vocabulary = next(spec.shape[-1] for spec in self._artifact.outputs if spec.name == LOGITS)
        values = rows * target * (vocabulary if isinstance(vocabulary, int) else 1)
        if target == 0:
            raise InvalidInputError(
                f"{DECODER_INPUT} holds no token",
                field=f"inputs.{DECODER_INPUT}",
                expected="at least one token a row",
                got=str(list(tokens.shape)),
            )
        if values > MAX_VALUES or target > MAX_STEPS:
            raise PayloadTooLargeError(
                f"{rows} rows of {target} tokens ask for {values} logits in {target} steps",
                field=f"inputs.{DECODER_INPUT}",
                expected=f"at most {MAX_VALUES} logits and {MAX_STEPS} steps",
                got=f"{values} logits, {target} steps",
                hint="send fewer rows or fewer tokens at a time",
            )

    def begin(self, inputs: Tensors, copies: int = 1) -> Decoding:
        """Encode a batch, and be ready to decode ``copies`` sequences of each of its rows, side by side."""
        encoded = self._encoder.run(inputs)
        fixed = {MASK: inputs[MASK]} | {
            name: tensor for name, tensor in encoded.items() if name.startswith(_CROSS)
        }
        batch = len(inputs[MASK]) * copies
        sizes = {"batch": batch, "past": 0}
        past = {
            spec.name: np.zeros(
                [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape], spec.numpy_dtype
            )
            for spec in self._past
        }
        return Decoding({name: np.repeat(tensor, copies, axis=0) for name, tensor in fixed.items()}, past)

    def step(self, decoding: Decoding, tokens: NDArray[Any]) -> NDArray[Any]:
        """Logits (batch, target, vocabulary) after each of ``tokens`` (batch, target); they join the cache."""
        logits, decoding.past = self.following(decoding, tokens)
        return logits

    def following(self, decoding: Decoding, tokens: NDArray[Any]) -> tuple[NDArray[Any], Cache]:
        """What :meth:`step` gives, and the cache with ``tokens`` in it; ``decoding`` stays as it is."""
        given = self._decoder.run({DECODER_INPUT: tokens, **decoding.fixed, **decoding.past})
        return given[LOGITS], {name: given[_PRESENT + name.removeprefix(_PAST)] for name in decoding.past}

    def together(self, most: int) -> Cohorts | None:
        """See :class:`mlos.engines.Shared`."""
        return Cohorts(self, most) if most > 1 else None
