"""What becomes of an upright RGB image before a model sees it, as a package says it."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

_Length = Annotated[int, Field(gt=0, le=1 << 14)]
_Colours = tuple[float, float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Normalization(_Frozen):
    """``(value - mean) / std``, for red, green and blue."""

    mean: _Colours
    std: _Colours


class ImageSteps(_Frozen):
    """What becomes of an upright RGB image, in this order. What is absent is not done.

    ``resize`` is (height, width), or one number for the shortest edge, which keeps the proportions; then the
    other edge is at most ``longest``, for which both become shorter. ``resample`` is Pillow's number of the
    filter. ``crop`` is (height, width) around the centre, with black where the image is smaller. Each value
    from 0 to 255 then becomes ``value * rescale + offset`` and goes through each of ``normalize``. With
    ``pad`` the images of a request get zeros on their right and below, until all are as high and as wide as
    the highest and the widest, and a mask of their pixels.
    """

    resize: _Length | tuple[_Length, _Length] | None = None
    longest: _Length | None = None
    resample: int = Field(default=int(Image.Resampling.BILINEAR), ge=0, le=5)
    crop: tuple[_Length, _Length] | None = None
    rescale: float | None = None
    offset: float = 0.0
    normalize: tuple[Normalization, ...] = ()
    pad: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of whatever comes out; None if they depend on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the first step, as transformers' ``get_size_with_aspect_ratio`` has them.

        The longer edge is rounded down; the shorter, where ``longest`` decides, to the nearest number.
        """
        if self.resize is None:
            return width, height
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        shorter, longer = min(width, height), max(width, height)
        exact: float = self.resize
        if self.longest is not None and longer / shorter * exact > self.longest:
            exact = self.longest * shorter / longer
        edge = round(exact)
        other = longer if edge == shorter else int(exact * longer / shorter)
        return (edge, other) if width <= height else (other, edge)

    def seen(self, width: int, height: int) -> tuple[int, int]:
        """Width and height as the model sees them, padding apart."""
        return self.resized(width, height) if self.crop is None else self.crop[::-1]

    def table(self) -> NDArray[np.float32]:
        """What becomes of each value of each colour: shape (3, 256).

        The product is rounded once, from double precision; what follows is computed in single precision.
        """
        values = np.arange(256, dtype=np.float64)
        scaled = (values if self.rescale is None else values * self.rescale).astype(np.float32)
        rows: NDArray[np.float32] = np.tile(scaled + np.float32(self.offset), (3, 1))
        for step in self.normalize:
            mean, std = (np.array(each, dtype=np.float32)[:, None] for each in (step.mean, step.std))
            rows = (rows - mean) / std
        return rows
