"""One batch of random inputs, on which a seeded model is calibrated."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from mlos.errors import MlosError

_PICTURES = 16
_PIXELS = 224
"""Edge of a picture, where the configuration leaves it open."""
_SAMPLES = 8000
"""Half a second at 16 kHz."""
_ANY_SIZE = ("dinov2",)
"""Kinds of models that fit their positions to whatever size a picture has; the one they name is large."""


def batch(model: transformers.PreTrainedModel, seed: int) -> dict[str, torch.Tensor]:
    """What ``model`` takes, by the name of its main input; both of texts and pictures, if it takes both.

    Four random texts of 32 tokens, and as many as answers; or pictures, in double precision.

    Raises:
        MlosError: if it takes something that no batch is known for.
    """
    taken = model.main_input_name
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model.config, "vision_config"):
        words = model.config.text_config.vocab_size
        texts = {"input_ids": torch.randint(words, (4, 32), generator=generator)}
        return texts | {"pixel_values": _pictures(model.config.vision_config, generator)}
    if taken == "pixel_values":
        return {taken: _pictures(model.config, generator)}
    if taken == "input_values":
        return {taken: _sounds(generator)}
    if taken != "input_ids":
        raise MlosError(
            f"a model that takes {taken} cannot be calibrated yet",
            expected="input_ids, input_values, pixel_values",
            got=taken,
        )
    texts = {"input_ids": torch.randint(model.config.vocab_size, (4, 32), generator=generator)}
    if model.config.is_encoder_decoder:
        texts["decoder_input_ids"] = torch.randint(model.config.vocab_size, (4, 32), generator=generator)
    return texts


def _pictures(config: Any, generator: torch.Generator) -> torch.Tensor:
    """Sixteen pictures of shape (16, channels, size, size): patches of all sizes over each other.

    They differ as photographs do, in what a model that averages over an image sees of them: fine or coarse,
    colourful or grey, bright or dark, rich or poor in contrast. Plain noise is one picture to such a model.
    """
    size = getattr(config, "image_size", _PIXELS)
    size = size if isinstance(size, int) else max(size)
    if config.model_type in _ANY_SIZE:
        size = min(size, _PIXELS)
    octaves = size.bit_length()

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        numbers = torch.rand(_PICTURES, *shape, generator=generator).double()
        return numbers.reshape(_PICTURES, *(shape or (1, 1, 1))) * (high - low) + low

    coarseness, colour = uniform(-1.0, 1.0), uniform(0.0, 1.0)
    brightness, contrast = uniform(-1.0, 1.0), uniform(0.4, 1.6)
    pictures = torch.zeros(_PICTURES, config.num_channels, size, size, dtype=torch.float64)
    variance = torch.zeros(_PICTURES, 1, 1, 1, dtype=torch.float64)
    for octave in range(octaves):
        patches = -(-size // 2**octave)
        strength = 2 ** (coarseness * (octave - octaves / 2))
        shared = uniform(-0.5, 0.5, 1, patches, patches)
        own = uniform(-0.5, 0.5, config.num_channels, patches, patches)
        layer = (shared + colour * own).repeat_interleave(2**octave, 2).repeat_interleave(2**octave, 3)
        pictures += strength * layer[:, :, :size, :size]
        variance += strength**2 * (1 + colour**2) / 12
    return pictures / variance.sqrt() * contrast + brightness


def _sounds(generator: torch.Generator) -> torch.Tensor:
    """Four sounds of half a second at 16 kHz, shape (4, samples), of mean 0 and variance 1.

    Each is noise that swells and fades over a few tones of its own.
    """
    time = torch.arange(_SAMPLES, dtype=torch.float64) / 16_000

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(4, *shape, generator=generator).double() * (high - low) + low

    tones = torch.sin(2 * torch.pi * uniform(80, 3000, 6, 1) * time + uniform(0, 6, 6, 1)).sum(1)
    swelling = 1 + torch.sin(2 * torch.pi * uniform(2, 9, 1) * time + uniform(0, 6, 1))
    sounds = (tones + uniform(0.2, 2, 1) * uniform(-1, 1, _SAMPLES)) * swelling
    return (sounds - sounds.mean(1, keepdim=True)) / sounds.std(1, keepdim=True)
