"""Text generation: a prompt, continued."""

from __future__ import annotations

from typing import ClassVar

from mlos.model import InferenceRequest
from mlos.tasks.generation import LanguageTask
from mlos.tasks.prepared import Known, Prepared, texts_of

_SPECIAL = "special_tokens"
_MORE: Known = {_SPECIAL: ("true or false", lambda value: isinstance(value, bool))}


class TextGeneration(LanguageTask):
    """The continuation of a ``prompt`` (or ``text``), tokenised as the framework's own tokenizer does it.

    A prompt that spells a control token is refused, unless the parameter ``special_tokens`` is true: then it
    becomes that token, as prompts for filling in the middle need it. See
    :data:`~mlos.tasks.generation.KNOWN` for the other parameters.
    """

    name: ClassVar[str] = "text-generation"

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds a text to go on with."""
        return request.prompt is not None or request.text is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; what the model wants at the beginning of a sequence comes first."""
        (text,) = texts_of(request, self.name, self._max_text_bytes, ("prompt", "text"))
        special = request.parameters.get(_SPECIAL) is True
        if not special:
            field = "prompt" if request.prompt is not None else "text"
            self.refuse_control(text, field, f"set parameters.{_SPECIAL} to true if it is meant as one")
        tokens = self.encode(text, control=special, begin=True)
        return self._prepared(tokens, request, _MORE)
