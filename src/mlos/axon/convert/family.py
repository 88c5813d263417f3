"""What a family of models has to say for itself when one of them is converted.

A family is a kind of repository (an encoder of texts, a classifier of images, ...): how its own framework loads
it, what is written of it, and how the framework answers the golden requests. The child drives whichever family
:func:`mlos.axon.convert.families.load` finds; each family stands in a module of its own.
"""

from __future__ import annotations

import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
import transformers

from mlos.axon.convert.export import Exporter
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit
from mlos.model import Artifact, FileRole, InferenceRequest
from mlos.parity import Case, GoldenRecord

SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How anything of a repository is loaded: from its folder alone, and running none of its code."""
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"),
    *("sentencepiece.bpe.model", "sentencepiece.model"),
)
"""Files that hold a tokenizer's vocabulary, of the kinds that are taken from a repository."""
_T = TypeVar("_T")
_UNLIMITED = 1 << 24
_TRAINED_AT = {"xlnet": 512}
"""Tokens that models without a limit of their own were trained with, by the type of the model."""


def settle_framework() -> None:
    """Let the framework compute in one thread, and not speak of its own future."""
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the order of sums decides their last bits, and the golden record is hashed


@dataclass(frozen=True)
class Made:
    """What a family wrote.

    ``files`` are relative to the output folder, each with its role. ``forms`` are artifacts on the way to this
    one, the nearest to the framework first; each is held to the row of its own precision and none is packaged.
    ``tools`` are versions of programs, by name.
    """

    artifact: Artifact
    files: tuple[tuple[str, FileRole], ...]
    tools: dict[str, str] = field(default_factory=dict)
    forms: tuple[Artifact, ...] = ()


class Family(ABC):
    """A loaded repository of one kind. ``tasks`` are those it is packaged for, in order."""

    model: transformers.PreTrainedModel
    tasks: list[str]

    @abstractmethod
    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """Write all but the golden record into ``output``, graphs by ``export``; ``emit`` may tell progress.

        It comes last: a family may let go of its model here.
        """

    @abstractmethod
    def preprocessing(self) -> dict[str, Any]:
        """Per task, what makes tensors of what a person has, and a result of tensors."""

    @abstractmethod
    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's own answer to one golden request. Never that of an export."""

    def fit(self, defaults: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The default requests of this model's tasks."""
        return [case for task in self.tasks for case in defaults[task]]

    @torch.no_grad()
    def record(self, requests: Sequence[dict[str, Any]], answered: Callable[[], None]) -> GoldenRecord:
        """Answer each of ``requests`` (a name and a V1 request); ``answered`` is called after each."""
        cases = []
        for given in requests:
            cases.append(self.answer(given["name"], msgspec.convert(given["request"], InferenceRequest)))
            answered()
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return GoldenRecord(tuple(cases), versions)

    def require_task(self, name: str, task: str) -> None:
        """Refuse a golden request for a task that this model is not packaged for."""
        if task not in self.tasks:
            raise RefusedError(
                f"golden request {name} asks for {task}", field=name, expected=", ".join(self.tasks), got=task
            )


def check_known(name: str, request: InferenceRequest, known: Collection[str]) -> None:
    """Refuse a golden request with a parameter that is not among ``known``.

    Raises:
        InvalidInputError: naming the first of them.
    """
    unknown = sorted(request.parameters.keys() - set(known))
    if unknown:
        raise InvalidInputError(f"golden request {name}: unknown parameter {unknown[0]}", field=unknown[0])


def choose_tasks(architecture: str, able: list[str], wanted: Iterable[str] | None) -> list[str]:
    """``wanted`` in its order, or all that the model is able to do.

    Raises:
        RefusedError: if it cannot do one of them.
    """
    chosen = list(wanted or ())
    for task in chosen:
        if task not in able:
            raise RefusedError(
                f"a {architecture} cannot do {task}", field="tasks", expected=", ".join(able), got=task
            )
    return chosen or able


def from_repository(load: Callable[[], _T]) -> _T:
    """What ``load`` loads of a repository with the framework.

    Raises:
        RefusedError: in one line, if the framework cannot.
    """
    try:
        return load()
    except (OSError, ValueError, KeyError) as error:
        raise RefusedError(f"transformers cannot load the repository: {str(error).splitlines()[0]}") from error


def load_model(kind: Any, source: Path, *, unused: Iterable[str] = ()) -> transformers.PreTrainedModel:
    """The model of ``source`` as the auto class ``kind`` in fp32 with eager attention, from SafeTensors alone.

    ``unused`` names modules whose weights may be missing, because no output depends on them.

    Raises:
        RefusedError: if it cannot be loaded, or weights are missing or of another shape: the framework would
            fill them with random numbers.
    """
    model, report = from_repository(
        lambda: kind.from_pretrained(
            source,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            **SAFE,
        )
    )
    left = set(unused)
    lacking = sorted(name for name in report["missing_keys"] if not left & set(name.split(".")))
    lacking += sorted(str(name) for name in report["mismatched_keys"])
    if lacking:
        raise RefusedError(
            f"the weights do not fit a {type(model).__name__}: {lacking[0]} is missing or of another shape",
            field=lacking[0],
        )
    loaded: transformers.PreTrainedModel = model
    loaded.train(False)
    return loaded


def load_tokenizer(source: Path) -> transformers.PreTrainedTokenizerFast:
    """The repository's tokenizer.

    Raises:
        RefusedError: if there is none, it cannot be loaded or has no ``tokenizer.json`` form.
    """
    # Where there is none the framework makes one up, of a handful of special tokens.
    if not any((source / name).is_file() for name in _VOCABULARIES):
        raise RefusedError(
            "the repository has no tokenizer",
            field="tokenizer",
            expected=", ".join(_VOCABULARIES),
            got="none of them",
        )
    tokenizer = from_repository(
        lambda: transformers.AutoTokenizer.from_pretrained(source, use_fast=True, **SAFE)
    )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise RefusedError("the repository's tokenizer has no tokenizer.json form", field="tokenizer")
    return tokenizer


def most_tokens(tokenizer: transformers.PreTrainedTokenizerFast, config: Any) -> int:
    """How many tokens a text may have: the least of what the tokenizer and the model's positions say.

    Raises:
        RefusedError: if neither says; a tokenizer that does not says 10 to the power of 30.
    """
    limits = [
        tokenizer.model_max_length,
        *(getattr(config, name, None) for name in ("max_position_embeddings", "n_positions")),
        _TRAINED_AT.get(config.model_type),
    ]
    said = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _UNLIMITED]
    if not said:
        raise RefusedError(
            "the repository does not say how long a text may be",
            field="model_max_length",
            expected="a number of tokens",
            got=str(tokenizer.model_max_length),
        )
    return min(said)


def save_tokenizer(tokenizer: transformers.PreTrainedTokenizerFast, path: Path) -> None:
    """Write the tokenizer in its own JSON form, without limits of length and padding.

    Those stand in the package's preprocessing facts: they differ by task.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    path.write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def read_config(source: Path) -> dict[str, Any]:
    """The repository's ``config.json``.

    Raises:
        RefusedError: if it cannot be read, is no object, or asks for code of the repository.
    """
    try:
        config = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(
            f"the repository has no readable config.json: {error}", field="config.json"
        ) from error
    if not isinstance(config, dict):
        raise RefusedError("config.json is not a JSON object", field="config.json")
    if "auto_map" in config:
        raise RefusedError(
            "config.json asks for code of the repository (auto_map), which is never run", field="config.json"
        )
    return config
