"""Text to token tensors with the ``tokenizers`` library alone, as the framework's own tokenizer does it.

The package holds ``tokenizer.json`` and ``config.json``. Settings of truncation and padding stored in
``tokenizer.json`` are dropped, as the framework drops them: a text is cut at the task's ``max_length``, several
texts are padded to the longest of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import Manifest, TensorSpec
from mlos.tasks.prepared import Padding, inputs_of

MAX_TOKENS = 16_384
"""Most tokens of one request, padding included: what a model needs for its activations grows with them."""
_FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Input tensor to the attribute of an encoding that fills it."""


class TextEncoder:
    """The tokenizer of one package, set up for one task.

    It reads from ``manifest.preprocessing[task]``: ``max_length`` (tokens, special ones included;
    required), ``pad_token`` (default: the token of ``pad_token_id`` in ``config.json``), ``padding_side``
    (default ``right``) and ``pad_type`` (the type of a padding token, default 0). It fills ``inputs``, by
    default those that the task's ``output`` is made of (:func:`~mlos.tasks.prepared.inputs_of`).
    """

    def __init__(
        self, folder: Path, manifest: Manifest, task: str, inputs: Sequence[TensorSpec] | None = None
    ) -> None:
        self.options: dict[str, Any] = manifest.preprocessing.get(task, {})
        self._specs = inputs_of(manifest, task) if inputs is None else inputs
        unknown = [spec.name for spec in self._specs if spec.name not in _FIELDS]
        if unknown:
            raise RefusedError(
                f"the task {task} cannot fill the model's input '{unknown[0]}'",
                field=unknown[0],
                expected=", ".join(_FIELDS),
                got=unknown[0],
            )
        max_length = self.options.get("max_length")
        if not isinstance(max_length, int) or max_length < 1:
            raise RefusedError(
                f"the package says no max_length for the task {task}",
                field=f"preprocessing.{task}.max_length",
                expected="a number of tokens",
                got=repr(max_length),
            )
        self.tokenizer = _load(folder / "tokenizer.json")
        self.pad_id = self._pad_id(folder)
        self.tokenizer.enable_truncation(max_length)
        side, pad_type = self.options.get("padding_side", "right"), self.options.get("pad_type", 0)
        self.tokenizer.enable_padding(
            direction=side,
            pad_id=self.pad_id,
            pad_type_id=pad_type,
            pad_token=self.tokenizer.id_to_token(self.pad_id) or "",
        )
        self.padding = Padding(
            {"input_ids": self.pad_id, "attention_mask": 0, "token_type_ids": pad_type}, left=side == "left"
        )
        """What the tokenizer puts beside a text that is shorter than another."""

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The model's inputs for ``texts``: each of shape (texts, tokens of the longest).

        Raises:
            PayloadTooLargeError: if that is over :data:`MAX_TOKENS` in all.
            InvalidInputError: if the tokenizer gives a text up.
        """
        return self.tensors(self._checked(self.tokenizer.encode_batch_fast, texts))

    def encodings(self, texts: Sequence[str]) -> Sequence[Encoding]:
        """What the tokenizer says of ``texts``, with the characters that each token stands for.

        Raises:
            MlosError: as :meth:`encode` does.
        """
        return self._checked(self.tokenizer.encode_batch, texts)

    def tensors(self, encodings: Sequence[Encoding]) -> dict[str, NDArray[Any]]:
        """The model's inputs of what the tokenizer said."""
        return {
            spec.name: np.array(
                [getattr(encoding, _FIELDS[spec.name]) for encoding in encodings], dtype=spec.numpy_dtype
            )
            for spec in self._specs
        }

    def tokens(self, numbers: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of ``numbers``."""
        return [self.tokenizer.id_to_token(number) or "" for number in numbers]

    def join(self, tokens: Sequence[str]) -> str:
        """The text that ``tokens`` spell together."""
        decoder = self.tokenizer.decoder
        text: str = decoder.decode(list(tokens)) if decoder is not None else " ".join(tokens)
        return text

    @staticmethod
    def _checked(encode: Callable[[list[str]], Sequence[Encoding]], texts: Sequence[str]) -> Sequence[Encoding]:
        """What ``encode`` makes of ``texts``, if they are not too many tokens together."""
        try:
            encodings = encode(list(texts))
        except BaseException as error:
            # A panic of the library is no Exception, and it would end the worker. It panics where a regular
            # expression of the package tries too long to match a text.
            if type(error).__name__ != "PanicException":
                raise
            raise InvalidInputError(
                f"the model's tokenizer gave the text up: {error}",
                field="text",
                expected="a text that the tokenizer's regular expressions can read",
                hint="send another text, or shorter ones",
            ) from None
        tokens = len(encodings) * len(encodings[0].ids)
        if tokens > MAX_TOKENS:
            raise PayloadTooLargeError(
                f"{len(encodings)} texts padded to {len(encodings[0].ids)} tokens make {tokens} tokens",
                field="texts",
                expected=f"at most {MAX_TOKENS} tokens, padding included",
                got=f"{tokens} tokens",
                hint="send fewer texts at a time",
            )
        return encodings

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of ``tokens``, cleaned up where the package's ``clean_up_tokenization_spaces`` says so."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return _clean_up(text) if self.options.get("clean_up_tokenization_spaces") else text

    def token_id(self, token: str) -> int:
        """Number of ``token``.

        Raises:
            RefusedError: if the vocabulary lacks it.
        """
        number: int | None = self.tokenizer.token_to_id(token)
        if number is None:
            raise RefusedError(f"the package's tokenizer has no token {token!r}", field="tokenizer.json")
        return number

    def _pad_id(self, folder: Path) -> int:
        token = self.options.get("pad_token")
        if token is not None:
            return self.token_id(token)
        path = folder / "config.json"
        try:
            number = json.loads(path.read_bytes()).get("pad_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise RefusedError(
                f"the package has no readable config.json: {error}", field="config.json"
            ) from error
        if not isinstance(number, int):
            raise RefusedError(
                "the package names no padding token",
                field="pad_token_id",
                expected="a number",
                got=repr(number),
            )
        return number


def states_of(manifest: Manifest, options: Mapping[str, Any], axes: int = 3) -> str:
    """Which output holds what embeddings are made of: ``options["output"]``, which must have ``axes`` axes.

    Raises:
        RefusedError: if there is no such output.
    """
    output = options.get("output", "last_hidden_state")
    if all((spec.name, len(spec.shape)) != (output, axes) for spec in manifest.artifact.outputs):
        raise RefusedError(f"the model gives no {output} of {axes} axes to make embeddings of", field=output)
    return str(output)


def _load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself, for a missing file as for a bad one
        raise RefusedError(f"the package has no readable tokenizer.json: {error}", field=path.name) from error


def _clean_up(text: str) -> str:
    """English spacing, with the replacements of the framework's ``clean_up_tokenization``, in its order."""
    for spaced, plain in (
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ):
        text = text.replace(spaced, plain)
    return text
