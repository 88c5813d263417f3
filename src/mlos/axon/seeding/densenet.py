"""DenseNet, a classifier of images that transformers does not have.

After Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks" (CVPR 2017,
https://arxiv.org/abs/1608.06993), in the form with bottlenecks and compression that they call DenseNet-BC:
every layer sees the outputs of all layers of its block before it, and adds ``growth_rate`` channels to them.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput


class DenseNetConfig(transformers.PretrainedConfig):  # type: ignore[no-untyped-call]  # its base's hook
    """The widths and depths; those of DenseNet-121 where nothing else is said.

    ``block_config`` counts the layers of each block, ``bottleneck`` the channels between the two convolutions
    of a layer in growth rates, ``compression`` the share of the channels that a transition keeps.
    """

    model_type = "densenet"

    num_channels: int = 3
    image_size: int = 224
    num_init_features: int = 64
    growth_rate: int = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    bottleneck: int = 4
    compression: float = 0.5


class DenseNet(transformers.PreTrainedModel):  # type: ignore[no-untyped-call]  # its base's hook
    """Pixels, shape (batch, channels, height, width), to ``logits``, shape (batch, labels)."""

    main_input_name = "pixel_values"

    def __init__(self, config: DenseNetConfig) -> None:
        super().__init__(config)
        channels = config.num_init_features
        self.stem = nn.Sequential(
            nn.Conv2d(config.num_channels, channels, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.ModuleList()
        for number, depth in enumerate(config.block_config):
            if number:
                kept = int(channels * config.compression)
                self.blocks.append(_Transition(channels, kept))
                channels = kept
            for _ in range(depth):
                self.blocks.append(_Dense(channels, config.growth_rate, config.bottleneck))
                channels += config.growth_rate
        self.normalization = nn.BatchNorm2d(channels)
        assert config.num_labels is not None  # which the base class sees to
        self.classifier = nn.Linear(channels, config.num_labels)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> ImageClassifierOutput:
        """See the class."""
        hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = block(hidden)
        pooled = torch.relu(self.normalization(hidden)).mean((2, 3))
        return ImageClassifierOutput(logits=self.classifier(pooled))


class _Dense(nn.Module):
    """A bottleneck of 1 x 1, a convolution of 3 x 3; what they make is put behind what they were given."""

    def __init__(self, channels: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, bottleneck * growth, 1, bias=False),
            nn.BatchNorm2d(bottleneck * growth),
            nn.ReLU(),
            nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat((hidden, self.layers(hidden)), 1)


class _Transition(nn.Sequential):
    """Fewer channels, and half the height and width."""

    def __init__(self, channels: int, kept: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, kept, 1, bias=False),
            nn.AvgPool2d(2),
        )
