"""What every family of models that read tokens of texts shares, whichever head they carry."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers

from mlos.axon.convert.export import Exporter
from mlos.axon.convert.family import Family, Made, most_tokens, save_tokenizer
from mlos.errors import InvalidInputError
from mlos.host.child import Emit
from mlos.model import InferenceRequest
from mlos.parity import Case

AXES = {0: "batch", 1: "sequence"}
"""Free axes of a tensor that has something for each token."""
_EXAMPLE = (2, 8)
"""Batch and sequence of the exporter's example."""


class TextFamily(Family):
    """A model of tokens and its tokenizer; ``inputs`` and ``outputs`` name the tensors that go in and come out.

    ``axes`` are the free axes of an output that has not one vector for each token.
    """

    outputs: tuple[str, ...]
    axes: Mapping[str, Mapping[int, str]] = MappingProxyType({})

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
    ) -> None:
        self.model, self.tokenizer, self._source = model, tokenizer, source
        taken = inspect.signature(model.forward).parameters
        self.inputs = tuple(name for name in tokenizer.model_input_names if name in taken)
        self.most_tokens = most_tokens(tokenizer, model.config)

    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """The model as one file, its tokenizer and its configuration."""
        exported = export(
            _Flat(self.model, self.inputs, self.outputs),
            {name: torch.ones(_EXAMPLE, dtype=torch.int64) for name in self.inputs},
            self.outputs,
            {name: self.axes.get(name, AXES) for name in (*self.inputs, *self.outputs)},
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

    def texts(self, name: str, request: InferenceRequest) -> list[str]:
        """The texts of a golden request.

        Raises:
            InvalidInputError: if it has none.
        """
        texts = [request.text] if request.text is not None else request.texts
        if not texts:
            raise InvalidInputError(f"golden request {name} has no text", field=name, expected="text or texts")
        return texts

    def encode(self, texts: list[str], most: int) -> Any:
        """The texts as the framework's tokenizer encodes them, cut at ``most`` tokens and padded."""
        return self.tokenizer(texts, padding="longest", truncation=True, max_length=most, return_tensors="pt")

    def run(self, encoded: Any) -> dict[str, torch.Tensor]:
        """The framework's outputs for encoded texts."""
        inputs = {tensor: encoded[tensor] for tensor in self.inputs}
        return dict(zip(self.outputs, run(self.model, inputs, self.outputs), strict=True))

    def case(
        self,
        name: str,
        request: InferenceRequest,
        task: str,
        encoded: Any,
        outputs: Mapping[str, torch.Tensor],
        results: list[Any],
    ) -> Case:
        """A case of the golden record, of one result for each text."""
        return Case(
            name=name,
            request=request,
            task=task,
            inputs={tensor: encoded[tensor].numpy() for tensor in self.inputs},
            outputs={tensor: value.numpy() for tensor, value in outputs.items()},
            result=results[0] if request.text is not None else results,
        )


class _Flat(torch.nn.Module):
    """The model as a function of tensors: positional inputs, and the named outputs as a tuple."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs = inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run(self.model, dict(zip(self._inputs, tensors, strict=True)), self._outputs)


def run(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...]
) -> tuple[torch.Tensor, ...]:
    """The model's ``outputs`` in that order.

    The last hidden state is taken from a head's hidden states too, and ``replaced_logits`` are the logits of a
    head that has one number for each token, whether it was replaced: no distribution to choose of.
    """
    headed = outputs != ("last_hidden_state",)
    hidden = headed and "last_hidden_state" in outputs
    answer = model(**inputs, output_hidden_states=hidden, return_dict=True)

    def named(name: str) -> torch.Tensor:
        if name == "last_hidden_state" and headed:
            tensor: torch.Tensor = answer.hidden_states[-1]
            return tensor
        found: torch.Tensor = answer["logits" if name == "replaced_logits" else name]
        return found

    return tuple(map(named, outputs))
