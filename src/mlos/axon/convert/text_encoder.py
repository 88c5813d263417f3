"""Encoders of texts: masked language models, and what embeds sentences."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.export import export
from mlos.axon.convert.family import (
    Family,
    Made,
    choose_tasks,
    load_model,
    load_tokenizer,
    most_tokens,
    read_config,
    save_tokenizer,
)
from mlos.errors import InvalidInputError
from mlos.host.child import Emit
from mlos.model import InferenceRequest
from mlos.parity import Case

_MASK = "{mask}"
"""Stands in the catalogue's default requests for the mask token of whatever tokenizer the model has."""
_AXES = {0: "batch", 1: "sequence"}
_EXAMPLE = (2, 8)
"""Batch and sequence of the exporter's example."""


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of an encoder of texts."""
    return (
        EmbeddingRecipe.is_declared(source)
        or architecture is None
        or architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
        or architecture in _encoders()
    )


class TextEncoder(Family):
    """An encoder and its tokenizer; ``inputs`` and ``outputs`` name the tensors that go in and come out."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
        tasks: Iterable[str] | None,
        *,
        masked: bool,
    ) -> None:
        able = ["fill-mask", "embeddings"] if masked and tokenizer.mask_token is not None else ["embeddings"]
        self.model, self.tokenizer, self._source = model, tokenizer, source
        self.tasks = choose_tasks(type(model).__name__, able, tasks)
        taken = inspect.signature(model.forward).parameters
        self.inputs = tuple(name for name in tokenizer.model_input_names if name in taken)
        self.outputs = ("logits", "last_hidden_state") if masked else ("last_hidden_state",)
        self._embedding = EmbeddingRecipe.read(source)
        most = most_tokens(tokenizer, model.config)
        self._max_length = {"fill-mask": most, "embeddings": min(self._embedding.max_length or most, most)}
        self._pipeline = (
            transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
            if "fill-mask" in self.tasks
            else None
        )

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        One of sentence-transformers gives its encoder; one whose configuration names a masked language model
        gives that with its head; one that names an encoder gives the encoder.

        Raises:
            RefusedError: if weights or tokenizer are missing, or it cannot do one of ``tasks``.
        """
        architecture = next(iter(read_config(source).get("architectures") or ()), None)
        masked = (
            not EmbeddingRecipe.is_declared(source)
            and architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
        )
        kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModel
        model = load_model(kind, source, unused=("pooler",))  # the pooler is not among the outputs
        return cls(model, load_tokenizer(source), source, tasks, masked=masked)

    def write(self, output: Path, emit: Emit) -> Made:
        """The model as an ONNX file, its tokenizer and its configuration."""
        exported = export(
            _Flat(self.model, self.inputs, self.outputs),
            {name: torch.ones(_EXAMPLE, dtype=torch.int64) for name in self.inputs},
            self.outputs,
            dict.fromkeys((*self.inputs, *self.outputs), _AXES),
            output,
        )
        exported.tell(emit)
        save_tokenizer(self.tokenizer, output / "tokenizer.json")
        shutil.copyfile(self._source / "config.json", output / "config.json")
        return Made(
            artifact=exported.artifact,
            files=(*exported.files, ("tokenizer.json", "tokenizer"), ("config.json", "config")),
            tools=exported.tools,
        )

    def preprocessing(self) -> dict[str, Any]:
        """Per task, what makes tensors of a text and a result of tensors."""
        tokenizer = self.tokenizer
        facts: dict[str, dict[str, Any]] = {
            "embeddings": {"pooling": "mean", "normalize": self._embedding.normalize},
            "fill-mask": {
                "mask_token": tokenizer.mask_token,
                "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
            },
        }
        for task, own in facts.items():
            own |= {"max_length": self._max_length[task], "pad_token": tokenizer.pad_token}
        return {task: facts[task] for task in self.tasks}

    def fit(self, defaults: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The default requests of this model's tasks, with its own mask token."""

        def filled(text: str) -> str:
            return text.replace(_MASK, self.tokenizer.mask_token or _MASK)

        cases = super().fit(defaults)
        for request in (case["request"] for case in cases):
            if "text" in request:
                request["text"] = filled(request["text"])
            if "texts" in request:
                request["texts"] = [filled(text) for text in request["texts"]]
        return cases

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer, by its fill-mask pipeline or by the pooling that the repository declares."""
        texts = [request.text] if request.text is not None else request.texts
        if not texts:
            raise InvalidInputError(f"golden request {name} has no text", field=name, expected="text or texts")
        task = request.task or self._task(texts)
        self.require_task(name, task)
        encoded = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self._max_length[task], return_tensors="pt"
        )
        inputs = {tensor: encoded[tensor] for tensor in self.inputs}
        outputs = dict(zip(self.outputs, _run(self.model, inputs, self.outputs), strict=True))
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
        mask = self.tokenizer.mask_token
        if "fill-mask" in self.tasks and any(mask in text for text in texts):
            return "fill-mask"
        return "embeddings"

    def _fill_mask(self, name: str, text: str, parameters: dict[str, Any]) -> Any:
        unknown = sorted(parameters.keys() - {"top_k"})
        if unknown:
            raise InvalidInputError(f"golden request {name}: unknown parameter {unknown[0]}", field=unknown[0])
        assert self._pipeline is not None
        limits = {"truncation": True, "max_length": self._max_length["fill-mask"]}
        return self._pipeline(text, tokenizer_kwargs=limits, **parameters)


class _Flat(torch.nn.Module):
    """The model as a function of tensors: positional inputs, and the named outputs as a tuple."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs = inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _run(self.model, dict(zip(self._inputs, tensors, strict=True)), self._outputs)


def _run(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...]
) -> tuple[torch.Tensor, ...]:
    """The model's ``outputs`` in that order; the last hidden state is taken from a head's hidden states too."""
    answer = model(**inputs, output_hidden_states="logits" in outputs, return_dict=True)
    return tuple(
        answer.hidden_states[-1] if name == "last_hidden_state" and "logits" in outputs else answer[name]
        for name in outputs
    )


def _encoders() -> set[str]:
    names: set[str] = set()
    for value in MODEL_MAPPING_NAMES.values():
        names.update((value,) if isinstance(value, str) else value)
    return names
