"""How an encoder's outputs become a text's embedding, as a repository of sentence-transformers declares it.

Format: ``modules.json`` lists the steps, each with a class and a folder; the pooling folder's ``config.json``
has a flag per way to pool; ``sentence_bert_config.json`` says how many tokens a text may have and whether it is
lower-cased first; ``config_sentence_transformers.json`` names prompts, which are put before a text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from mlos.errors import InvalidInputError, RefusedError
from mlos.model.manifest import normal_path

Pooling: TypeAlias = Literal["mean", "cls", "max"]
_WAYS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_KINDS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])


@dataclass(frozen=True)
class EmbeddingRecipe:
    """Pooling over the positions that are no padding, then the unit length if ``normalize``.

    A repository that is none of sentence-transformers gets the plain mean. ``max_length`` is in tokens, None
    where only the tokenizer limits it. ``prompts`` are by name; ``prompt`` is the one of a request that names
    none.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    lower_case: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    prompt: str | None = None

    @staticmethod
    def is_declared(source: Path) -> bool:
        """Whether the repository says how it embeds."""
        return (source / "modules.json").is_file()

    @classmethod
    def read(cls, source: Path) -> EmbeddingRecipe:
        """Read what the repository declares.

        Raises:
            RefusedError: if it pools in another way, or has steps besides encoder, pooling and normalisation.
        """
        if not cls.is_declared(source):
            return cls()
        modules = _json(source, "modules.json")
        try:
            steps = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
        except (TypeError, KeyError) as error:
            raise RefusedError("modules.json is not a list of steps", field="modules.json") from error
        kinds = [kind for kind, _ in steps]
        if kinds not in _KINDS or steps[0][1]:
            raise RefusedError(
                "modules.json lists steps that cannot be converted yet",
                field="modules.json",
                expected="Transformer in the repository's own folder, Pooling, and Normalize or nothing",
                got=", ".join(kinds),
            )
        pooling, with_prompt = _pooling(source, steps[1][1])
        limits = _json(source, "sentence_bert_config.json", {})
        prompts, prompt = _prompts(source)
        if not with_prompt and any(prompts.values()):
            raise RefusedError(
                "the pooling leaves out the tokens of prompts, which is not supported",
                field="include_prompt",
                expected="true",
                got="false",
            )
        return cls(
            pooling=pooling,
            normalize="Normalize" in kinds,
            max_length=limits.get("max_seq_length"),
            lower_case=bool(limits.get("do_lower_case")),
            prompts=prompts,
            prompt=prompt,
        )

    def facts(self) -> dict[str, Any]:
        """What the task needs to do the same."""
        facts: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize}
        if self.lower_case:
            facts["lower_case"] = True
        if self.prompts:
            facts |= {"prompts": self.prompts, "prompt": self.prompt}
        return facts

    def prepare(self, text: str, prompt_name: str | None) -> str:
        """The text as it is tokenized: after its prompt, and lower-cased where that is declared.

        Raises:
            InvalidInputError: if there is no prompt of that name.
        """
        name = prompt_name if prompt_name is not None else self.prompt
        if name is not None and name not in self.prompts:
            raise InvalidInputError(f"no prompt is called {name!r}", field="prompt_name", got=repr(name))
        whole = self.prompts[name] + text if name is not None else text
        return whole.lower() if self.lower_case else whole

    def embed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[batch, features]`` of hidden states ``[batch, sequence, features]``."""
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "max":
            pooled = hidden.masked_fill(weights == 0, -1e9).max(1).values
        else:
            pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def _pooling(source: Path, path: str) -> tuple[Pooling, bool]:
    """How the folder ``path`` pools, and whether over the tokens of a prompt too."""
    folder = normal_path(path)
    pooling = _json(source, f"{folder}/config.json")
    ways = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    if len(ways) != 1 or ways[0] not in _WAYS:
        raise RefusedError(
            f"{folder}/config.json pools in a way that cannot be converted yet",
            field=f"{folder}/config.json",
            expected=f"one of {', '.join(_WAYS)}",
            got=", ".join(ways) or "no known way",
        )
    return _WAYS[ways[0]], pooling.get("include_prompt", True) is not False


def _prompts(source: Path) -> tuple[dict[str, str], str | None]:
    """The prompts that the repository names, and which of them is put before a text unasked."""
    declared = _json(source, "config_sentence_transformers.json", {})
    prompts, prompt = declared.get("prompts") or {}, declared.get("default_prompt_name")
    texts = isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values())
    if not texts or (prompt is not None and prompt not in prompts):
        raise RefusedError(
            "config_sentence_transformers.json does not name its prompts as texts",
            field="prompts",
            expected="texts by name, and default_prompt_name one of them",
            got=f"{prompts!r:.100}, {prompt!r:.100}",
        )
    return prompts, prompt


def _json(source: Path, name: str, default: dict[str, Any] | None = None) -> Any:
    """A file of the repository; ``default`` where it is not there and one is given."""
    if default is not None and not (source / name).is_file():
        return default
    try:
        return json.loads((source / name).read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(f"{name} cannot be read: {error}", field=name) from error
