"""Text to token tensors with the vocabulary in a GGUF file, for an encoder that llama.cpp computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.engines import vocabulary_of
from mlos.errors import PayloadTooLargeError, RefusedError
from mlos.model import Manifest
from mlos.tasks.prepared import Padding
from mlos.tasks.text import MAX_TOKENS, TextEncoder


class GgufEncoder:
    """What :class:`~mlos.tasks.text.TextEncoder` does, by llama.cpp's own tokenizer.

    It reads ``max_length`` from ``manifest.preprocessing[task]``: tokens, special ones included.
    """

    padding: Padding | None = None
    """Texts are not made longer to be computed with others: llama.cpp computes row after row."""

    def __init__(self, folder: Path, manifest: Manifest, task: str) -> None:
        self.options: dict[str, Any] = manifest.preprocessing.get(task, {})
        most = self.options.get("max_length")
        if not isinstance(most, int) or most < 2:
            raise RefusedError(
                f"the package says no max_length for the task {task}",
                field=f"preprocessing.{task}.max_length",
                expected="a number of tokens from 2",
                got=repr(most),
            )
        self._most = most
        self._vocabulary = vocabulary_of(folder, manifest.artifact)

    def encode(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Tokens and their mask for ``texts``: each of shape (texts, tokens of the longest).

        Raises:
            InvalidInputError: if the vocabulary cannot spell a text.
            PayloadTooLargeError: if that is over :data:`~mlos.tasks.text.MAX_TOKENS` in all.
        """
        rows = [self._vocabulary.whole(text, self._most) for text in texts]
        longest = max(map(len, rows))
        if len(rows) * longest > MAX_TOKENS:
            raise PayloadTooLargeError(
                f"{len(rows)} texts padded to {longest} tokens make {len(rows) * longest} tokens",
                field="texts",
                expected=f"at most {MAX_TOKENS} tokens, padding included",
                got=f"{len(rows) * longest} tokens",
                hint="send fewer texts at a time",
            )
        tokens, mask = (np.zeros((len(rows), longest), dtype=np.int64) for _ in range(2))
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": tokens, "attention_mask": mask}

    def tokens(self, numbers: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of ``numbers``."""
        return [self._vocabulary.spelling(number) for number in numbers]


def encoder_of(folder: Path, manifest: Manifest, task: str) -> TextEncoder | GgufEncoder:
    """What makes tokens of texts for the package in ``folder``.

    Raises:
        RefusedError: if the package lacks what that needs.
    """
    kind = GgufEncoder if manifest.artifact.format == "gguf" else TextEncoder
    return kind(folder, manifest, task)
