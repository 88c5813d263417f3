"""One batch of random inputs, on which a seeded model is calibrated."""

from __future__ import annotations

import torch
import transformers

from mlos.errors import MlosError


def batch(model: transformers.PreTrainedModel, seed: int) -> dict[str, torch.Tensor]:
    """What ``model`` takes, by the name of its main input: four random texts of 32 tokens.

    Raises:
        MlosError: if it takes something that no batch is known for.
    """
    taken = model.main_input_name
    if taken != "input_ids":
        raise MlosError(f"a model that takes {taken} cannot be calibrated yet", expected="input_ids", got=taken)
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(model.config.vocab_size, (4, 32), generator=generator)}
