"""Encoders of texts: masked language models, detectors of replaced tokens, and what embeds sentences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.family import (
    check_known,
    choose_tasks,
    load_model,
    load_tokenizer,
    most_tokens,
    read_config,
)
from mlos.axon.convert.text import TextFamily
from mlos.model import InferenceRequest
from mlos.parity import Case

_MASK = "{mask}"
"""Stands in the catalogue's default requests for the mask token of whatever tokenizer the model has."""
_DETECTORS = ("ElectraForPreTraining",)
"""Architectures whose head says of each token whether it was replaced."""
_ENCODING = ("XLNetLMHeadModel",)
"""Architectures with a head that no task here asks: what is below it encodes texts."""


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of an encoder of texts."""
    return (
        EmbeddingRecipe.is_declared(source)
        or architecture is None
        or is_masked(architecture)
        or architecture in _DETECTORS + _ENCODING
        or architecture in _encoders()
    )


def is_masked(architecture: str | None) -> bool:
    """Whether a model is a masked language model."""
    return architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def facts(
    tokenizer: transformers.PreTrainedTokenizerFast, config: Any, recipe: EmbeddingRecipe
) -> dict[str, dict[str, Any]]:
    """For each task of an encoder, what makes tensors of a text and a result of tensors.

    Whether the model can do the task, they do not say: fill-mask needs a head, and a mask token.
    """
    most = most_tokens(tokenizer, config)
    padding: dict[str, Any] = {"max_length": most, "pad_token": tokenizer.pad_token}
    if tokenizer.padding_side == "left":
        padding |= {"padding_side": "left", "pad_type": tokenizer.pad_token_type_id}
    return {
        "fill-mask": padding
        | {
            "mask_token": tokenizer.mask_token,
            "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        },
        "embeddings": padding | recipe.facts() | {"max_length": min(recipe.max_length or most, most)},
        "token-embeddings": padding,
    }


def filled(cases: list[dict[str, Any]], mask: str | None) -> list[dict[str, Any]]:
    """The catalogue's default requests ``cases``, with the tokenizer's own ``mask`` token in their texts."""

    def own(text: str) -> str:
        return text.replace(_MASK, mask or _MASK)

    for request in (case["request"] for case in cases):
        if "text" in request:
            request["text"] = own(request["text"])
        if "texts" in request:
            request["texts"] = [own(text) for text in request["texts"]]
    return cases


class TextEncoder(TextFamily):
    """An encoder and its tokenizer; a masked language model with its head."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
        tasks: Iterable[str] | None,
        *,
        head: str | None,
    ) -> None:
        super().__init__(model, tokenizer, source)
        able = ["embeddings", "token-embeddings"]
        if head == "logits" and tokenizer.mask_token is not None:
            able.insert(0, "fill-mask")
        self.tasks = choose_tasks(type(model).__name__, able, tasks)
        self.outputs = (head, "last_hidden_state") if head is not None else ("last_hidden_state",)
        self._embedding = EmbeddingRecipe.read(source)
        self._facts = facts(tokenizer, model.config, self._embedding)
        pipelines = {
            "fill-mask": ("fill-mask", model),
            "token-embeddings": ("feature-extraction", model.base_model),
        }
        self._pipelines = {
            task: transformers.pipeline(kind, model=whole, tokenizer=tokenizer, device="cpu")  # type: ignore[call-overload]  # overloads by literal
            for task, (kind, whole) in pipelines.items()
            if task in self.tasks
        }

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        One of sentence-transformers gives its encoder; one whose configuration names a masked language model
        or a detector of replaced tokens gives that with its head; one that names an encoder gives the encoder.

        Raises:
            RefusedError: if weights or tokenizer are missing, or it cannot do one of ``tasks``.
        """
        architecture = next(iter(read_config(source).get("architectures") or ()), None)
        kind: Any = transformers.AutoModel
        head = None
        if not EmbeddingRecipe.is_declared(source):
            if is_masked(architecture):
                kind, head = transformers.AutoModelForMaskedLM, "logits"
            elif architecture in _DETECTORS:
                kind, head = transformers.AutoModelForPreTraining, "replaced_logits"
        model = load_model(kind, source, unused=("pooler",))  # the pooler is not among the outputs
        return cls(model, load_tokenizer(source), source, tasks, head=head)

    def preprocessing(self) -> dict[str, Any]:
        """Per task, what makes tensors of a text and a result of tensors."""
        return {task: self._facts[task] for task in self.tasks}

    def fit(self, defaults: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The default requests of this model's tasks, with its own mask token."""
        return filled(super().fit(defaults), self.tokenizer.mask_token)

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer, by its own pipelines or by the pooling that the repository declares."""
        texts = self.texts(name, request)
        task = request.task or self._task(texts)
        self.require_task(name, task)
        check_known(name, request, {"fill-mask": {"top_k"}, "embeddings": {"prompt_name"}}.get(task, set()))
        given = texts
        if task == "embeddings":
            given = [self._embedding.prepare(text, request.parameters.get("prompt_name")) for text in texts]
        encoded = self.encode(given, self._facts[task]["max_length"])
        outputs = self.run(encoded)
        if task == "embeddings":
            vectors = self._embedding.embed(outputs["last_hidden_state"], encoded["attention_mask"])
            results = [{"embedding": vector.tolist(), "dimensions": len(vector)} for vector in vectors]
        elif task == "token-embeddings":
            results = [self._token_embeddings(text) for text in texts]
        else:
            results = [self._fill_mask(text, request.parameters) for text in texts]
        return self.case(name, request, task, encoded, outputs, results)

    def _task(self, texts: list[str]) -> str:
        """A masked language model fills the masks where a text has one; else it embeds."""
        mask = self.tokenizer.mask_token
        if "fill-mask" in self.tasks and any(mask in text for text in texts):
            return "fill-mask"
        return "embeddings"

    def _fill_mask(self, text: str, parameters: dict[str, Any]) -> Any:
        limits = {"truncation": True, "max_length": self._facts["fill-mask"]["max_length"]}
        return self._pipelines["fill-mask"](text, tokenizer_kwargs=limits, **parameters)

    def _token_embeddings(self, text: str) -> dict[str, Any]:
        limits = {"truncation": True, "max_length": self._facts["token-embeddings"]["max_length"]}
        (vectors,) = self._pipelines["token-embeddings"](text, tokenize_kwargs=limits)
        numbers = self.tokenizer(text, **limits)["input_ids"]
        return {
            "tokens": self.tokenizer.convert_ids_to_tokens(numbers),
            "embeddings": vectors,
            "dimensions": len(vectors[0]),
        }


def _encoders() -> set[str]:
    names: set[str] = set()
    for value in MODEL_MAPPING_NAMES.values():
        names.update((value,) if isinstance(value, str) else value)
    return names
