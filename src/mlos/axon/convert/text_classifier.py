"""Classifiers of texts, and of the tokens of texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from mlos.axon.convert.family import (
    check_known,
    choose_tasks,
    load_model,
    load_tokenizer,
    most_tokens,
    read_config,
)
from mlos.axon.convert.labels import labels_of, scores_of
from mlos.axon.convert.text import AXES, TextFamily
from mlos.model import InferenceRequest
from mlos.parity import Case

_TEXTS, _TOKENS = "text-classification", "token-classification"
_OUTPUT = "logits"
_TOP_K = 5
"""How many labels a text is answered with, unless the request says otherwise."""


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of a classifier of texts or of tokens."""
    return task_of(architecture) is not None


def facts(task: str, tokenizer: transformers.PreTrainedTokenizerFast, config: Any) -> dict[str, Any]:
    """What makes tensors of a text, and labels with scores of logits."""
    found: dict[str, Any] = {
        "labels": labels_of(config),
        "max_length": most_tokens(tokenizer, config),
        "pad_token": tokenizer.pad_token,
    }
    if task == _TEXTS:
        return found | {"scores": scores_of(config)}
    return found | {"unk_token": tokenizer.unk_token}


class TextClassifier(TextFamily):
    """A classifier and its tokenizer."""

    outputs = (_OUTPUT,)

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
        task: str,
        tasks: Iterable[str] | None,
    ) -> None:
        super().__init__(model, tokenizer, source)
        self.tasks = choose_tasks(type(model).__name__, [task], tasks)
        self.axes = {_OUTPUT: {0: "batch"} if task == _TEXTS else AXES}
        # The pipeline of tokens cuts texts where its tokenizer says, and takes no other length.
        tokenizer.model_max_length = self.most_tokens
        pipeline: Any = transformers.pipeline
        self._pipeline = pipeline(task, model=model, tokenizer=tokenizer, device="cpu")

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if weights or tokenizer are missing, or it cannot do one of ``tasks``.
        """
        task = task_of(next(iter(read_config(source).get("architectures") or ()), None))
        assert task is not None  # covers saw to it
        kind = (
            transformers.AutoModelForSequenceClassification
            if task == _TEXTS
            else transformers.AutoModelForTokenClassification
        )
        return cls(load_model(kind, source), load_tokenizer(source), source, task, tasks)

    def preprocessing(self) -> dict[str, Any]:
        """What makes tensors of a text, and labels with scores of logits."""
        (task,) = self.tasks
        return {task: facts(task, self.tokenizer, self.model.config)}

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer, by its own pipeline."""
        texts = self.texts(name, request)
        (able,) = self.tasks
        task = request.task or able
        self.require_task(name, task)
        encoded = self.encode(texts, self.most_tokens)
        if task == _TEXTS:
            check_known(name, request, {"top_k"})
            limits = {"truncation": True, "max_length": self.most_tokens, "top_k": _TOP_K}
            results = [self._pipeline(text, **limits | request.parameters) for text in texts]
        else:
            check_known(name, request, {"aggregation_strategy"})
            results = [self._entities(text, request.parameters) for text in texts]
        return self.case(name, request, task, encoded, self.run(encoded), results)

    def _entities(self, text: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        """The pipeline's answer, its numbers as those of JSON."""
        return [entity | {"score": float(entity["score"])} for entity in self._pipeline(text, **parameters)]


def task_of(architecture: str | None) -> str | None:
    """What a classifier classifies, as the name of its task; None for any other model."""
    for task, known in (
        (_TEXTS, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        (_TOKENS, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    ):
        if architecture in known.values():
            return task
    return None
