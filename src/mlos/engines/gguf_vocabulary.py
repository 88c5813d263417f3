"""The vocabulary in a GGUF file, by llama.cpp's own tokenizer."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from mlos.engines.files import file_of
from mlos.engines.llama_cpp_library import Model, library
from mlos.errors import InvalidInputError, RefusedError
from mlos.model import Artifact

_TEMPLATE = "tokenizer.chat_template"
_UNKNOWN, _CONTROL, _USER_DEFINED = 1 << 0, 1 << 3, 1 << 4
"""Of ``llama_token_attr``."""


def vocabulary_of(folder: Path, artifact: Artifact) -> GgufVocabulary:
    """How the language model of ``artifact``, in the package's ``folder``, spells; its weights are not loaded.

    Raises:
        MissingExtraError: if llama.cpp is not installed.
        RefusedError: if the artifact is no GGUF file, or has no vocabulary.
    """
    if artifact.format != "gguf":
        raise RefusedError(
            "only a GGUF file holds a vocabulary of its own",
            field="format",
            expected="gguf",
            got=artifact.format,
        )
    return GgufVocabulary(Model(file_of(folder, artifact), vocabulary_only=True))


class GgufVocabulary:
    """See :class:`mlos.engines.Vocabulary`. The library only reads, so threads need no lock."""

    def __init__(self, model: Model) -> None:
        if model.size == 0:
            raise RefusedError("the GGUF file holds no vocabulary", field="tokenizer.ggml.tokens")
        self._model = model

    @cached_property
    def control(self) -> Mapping[str, int]:
        """Text of each control token to its number."""
        api, vocabulary = library(), self._model.vocabulary
        return MappingProxyType(
            {
                self._text(token): token
                for token in range(self._model.size)
                if self._is_mark(api.llama_vocab_get_attr(vocabulary, token), self._text(token))
            }
        )

    @staticmethod
    def _is_mark(attributes: int, text: str) -> bool:
        """Whether a token is no text but a mark, all of which the library reads where control tokens count.

        User-defined tokens are ordinary text too (runs of spaces, HTML tags): only ``<|…|>`` among them are.
        """
        if attributes & (_CONTROL | _UNKNOWN):
            return True
        return bool(attributes & _USER_DEFINED) and text.startswith("<|") and text.endswith("|>")

    @property
    def bos(self) -> str:
        """Text of the token that begins a sequence; empty if there is none."""
        return self._text(self._bos)

    @property
    def eos(self) -> str:
        """Text of the token that ends a sequence; empty if there is none."""
        return self._text(library().llama_vocab_eos(self._model.vocabulary))

    @property
    def chat_template(self) -> str | None:
        """The template in the file's metadata."""
        return self._model.text(_TEMPLATE)

    def encode(self, text: str, *, control: bool, begin: bool) -> list[int]:
        """Tokens of ``text``; see :meth:`mlos.engines.Vocabulary.encode`.

        What the model wants at the beginning does not come twice where the text has it already.

        Raises:
            InvalidInputError: if the vocabulary cannot spell the text.
        """
        found = self._tokenize(text, special=False, control=control)
        wanted = begin and library().llama_vocab_get_add_bos(self._model.vocabulary)
        if wanted and found[:1] != [self._bos]:
            found.insert(0, self._bos)
        return found

    def whole(self, text: str, most: int) -> list[int]:
        """Tokens of ``text`` as an encoder reads it: special ones at both ends, and ``most`` of them at most.

        The texts of control tokens become these tokens, as in the framework's tokenizers.

        Raises:
            InvalidInputError: if the vocabulary cannot spell the text.
        """
        api, found = library(), self._tokenize(text, special=True, control=True)
        ends = {api.llama_vocab_sep(self._model.vocabulary), api.llama_vocab_eos(self._model.vocabulary)}
        if len(found) <= most:
            return found
        return [*found[: most - 1], found[-1]] if found[-1] in ends else found[:most]

    def _tokenize(self, text: str, *, special: bool, control: bool) -> list[int]:
        api, data = library(), text.encode()
        room = len(data) + 8  # a token stands for a byte at least; a space may come before the first
        while True:
            tokens = (api.llama_token * room)()
            count = api.llama_tokenize(self._model.vocabulary, data, len(data), tokens, room, special, control)
            if count >= 0:
                return list(tokens[:count])
            if -count <= room:  # the library asks for no more room: it failed for another reason
                raise InvalidInputError("the model's vocabulary cannot spell this text", field="text")
            room = -count

    def spelling(self, token: int) -> str:
        """How the vocabulary itself writes a token."""
        return self._text(token)

    def piece(self, token: int) -> bytes:
        """What a token adds to the text; nothing for a control token."""
        api, room = library(), 64
        buffer = ctypes.create_string_buffer(room)
        length = api.llama_token_to_piece(self._model.vocabulary, token, buffer, room, 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = api.llama_token_to_piece(self._model.vocabulary, token, buffer, -length, 0, False)
        return buffer.raw[: max(length, 0)]

    def ends(self, token: int) -> bool:
        """Whether the model says with this token that it has finished."""
        return bool(library().llama_vocab_is_eog(self._model.vocabulary, token))

    @property
    def _bos(self) -> int:
        return int(library().llama_vocab_bos(self._model.vocabulary))

    def _text(self, token: int) -> str:
        text = library().llama_vocab_get_text(self._model.vocabulary, token) if token >= 0 else b""
        return str(text.decode(errors="replace"))
