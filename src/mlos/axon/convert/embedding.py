"""How an encoder's outputs become a text's embedding, as a repository of sentence-transformers declares it.

Format: ``modules.json`` lists the steps, each with a class and a folder; the pooling folder's ``config.json``
has a flag per way to pool; ``sentence_bert_config.json`` says how many tokens a text may have.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlos.errors import RefusedError
from mlos.model.manifest import normal_path

_MEAN = "pooling_mode_mean_tokens"


@dataclass(frozen=True)
class EmbeddingRecipe:
    """Mean of the positions that are no padding, then the unit length if ``normalize``.

    A repository that is none of sentence-transformers gets the plain mean. ``max_length`` is in tokens, None
    where only the tokenizer limits it.
    """

    normalize: bool
    max_length: int | None

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
            return cls(normalize=False, max_length=None)
        modules = _json(source, "modules.json")
        try:
            steps = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
        except (TypeError, KeyError) as error:
            raise RefusedError("modules.json is not a list of steps", field="modules.json") from error
        kinds = [kind for kind, _ in steps]
        if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or steps[0][1]:
            raise RefusedError(
                "modules.json lists steps that cannot be converted yet",
                field="modules.json",
                expected="Transformer in the repository's own folder, Pooling, and Normalize or nothing",
                got=", ".join(kinds),
            )
        folder = normal_path(steps[1][1])
        pooling = _json(source, f"{folder}/config.json")
        ways = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
        if ways != [_MEAN]:
            raise RefusedError(
                "pooling other than by the mean cannot be converted yet",
                field=f"{folder}/config.json",
                expected=_MEAN,
                got=", ".join(ways) or "no known way",
            )
        limits = {}
        if (source / "sentence_bert_config.json").is_file():
            limits = _json(source, "sentence_bert_config.json")
        if limits.get("do_lower_case"):
            raise RefusedError(
                "sentence_bert_config.json lower-cases texts before the tokenizer does, which is not supported",
                field="do_lower_case",
            )
        return cls(normalize="Normalize" in kinds, max_length=limits.get("max_seq_length"))

    def embed(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[batch, features]`` of hidden states ``[batch, sequence, features]``."""
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def _json(source: Path, name: str) -> Any:
    try:
        return json.loads((source / name).read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(f"{name} cannot be read: {error}", field=name) from error
