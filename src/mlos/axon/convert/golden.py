"""The framework's own answers: its tokenizer, its model in fp32, its pipelines. Never those of an export.

This is the other side of every parity: nothing of our tasks or engines is used here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import torch
import transformers

from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.export import run
from mlos.errors import InvalidInputError, RefusedError
from mlos.model import InferenceRequest
from mlos.parity import Case, GoldenRecord

_MASK = "{mask}"
"""Stands in the catalogue's default requests for the mask token of whatever tokenizer the model has."""


class Framework:
    """A loaded model, ready to answer requests as a user of the framework would see them answered."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        embedding: EmbeddingRecipe,
        tasks: list[str],
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._inputs, self._outputs = inputs, outputs
        self._embedding, self._tasks = embedding, tasks
        positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
        self._max_length = {
            "fill-mask": min(tokenizer.model_max_length, positions),
            "embeddings": min(embedding.max_length or tokenizer.model_max_length, positions),
        }
        self._pipeline = (
            transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
            if "fill-mask" in tasks
            else None
        )

    def preprocessing(self) -> dict[str, Any]:
        """Per task, what makes tensors of a text and a result of tensors."""
        tokenizer = self._tokenizer
        facts: dict[str, dict[str, Any]] = {
            "embeddings": {"pooling": "mean", "normalize": self._embedding.normalize},
            "fill-mask": {
                "mask_token": tokenizer.mask_token,
                "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
            },
        }
        for task, own in facts.items():
            own |= {"max_length": self._max_length[task], "pad_token": tokenizer.pad_token}
        return {task: facts[task] for task in self._tasks}

    def fit(self, defaults: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The default requests of this model's tasks, with its own mask token."""

        def filled(text: str) -> str:
            return text.replace(_MASK, self._tokenizer.mask_token or _MASK)

        cases = [case for task in self._tasks for case in defaults[task]]
        for request in (case["request"] for case in cases):
            if "text" in request:
                request["text"] = filled(request["text"])
            if "texts" in request:
                request["texts"] = [filled(text) for text in request["texts"]]
        return cases

    @torch.no_grad()
    def answer(self, requests: list[dict[str, Any]], answered: Callable[[], None]) -> GoldenRecord:
        """Answer each of ``requests`` (a name and a V1 request); ``answered`` is called after each."""
        cases = []
        for given in requests:
            request = msgspec.convert(given["request"], InferenceRequest)
            cases.append(self._case(given["name"], request))
            answered()
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return GoldenRecord(tuple(cases), versions)

    def _case(self, name: str, request: InferenceRequest) -> Case:
        texts = [request.text] if request.text is not None else request.texts
        if not texts:
            raise InvalidInputError(f"golden request {name} has no text", field=name, expected="text or texts")
        task = request.task or self._task(texts)
        if task not in self._tasks:
            raise RefusedError(
                f"golden request {name} asks for {task}", field=name, expected=", ".join(self._tasks), got=task
            )
        encoded = self._tokenizer(
            texts, padding="longest", truncation=True, max_length=self._max_length[task], return_tensors="pt"
        )
        inputs = {tensor: encoded[tensor] for tensor in self._inputs}
        outputs = dict(zip(self._outputs, run(self._model, inputs, self._outputs), strict=True))
        if task == "fill-mask":
            results = [self._fill_mask(name, text, request.parameters) for text in texts]
        else:
            results = [
                {"embedding": vector.tolist(), "dimensions": len(vector)}
                for vector in self._embedding.embed(outputs["last_hidden_state"], encoded["attention_mask"])
            ]
        return Case(
            name=name,
            request=request,
            task=task,
            inputs={tensor: value.numpy() for tensor, value in inputs.items()},
            outputs={tensor: value.numpy() for tensor, value in outputs.items()},
            result=results[0] if request.text is not None else results,
        )

    def _task(self, texts: list[str]) -> str:
        """A masked language model fills the masks where a text has one; else it embeds."""
        mask = self._tokenizer.mask_token
        if "fill-mask" in self._tasks and any(mask in text for text in texts):
            return "fill-mask"
        return "embeddings"

    def _fill_mask(self, name: str, text: str, parameters: dict[str, Any]) -> Any:
        unknown = sorted(parameters.keys() - {"top_k"})
        if unknown:
            raise InvalidInputError(f"golden request {name}: unknown parameter {unknown[0]}", field=unknown[0])
        assert self._pipeline is not None
        limits = {"truncation": True, "max_length": self._max_length["fill-mask"]}
        return self._pipeline(text, tokenizer_kwargs=limits, **parameters)
