"""From a coarse map of logits to the label of each pixel of an image, and to masks.

The framework makes the map as large as the image, for every label, and takes the best label of each pixel:
12 GB for 150 labels and 20 megapixels. Here it goes tile by tile, and of each tile only through the labels that
can be the best somewhere in it: a value between grid points is no higher than the highest and no lower than
the lowest of them.
"""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_EDGE = 64
"""Pixels of a tile's edge; a tile of a narrow image is longer, so that there are never many."""


class _Axis(NamedTuple):
    """For each pixel along an edge: the grid points before and after it, and the weight of the latter."""

    before: NDArray[np.intp]
    after: NDArray[np.intp]
    weight: NDArray[np.float32]

    def part(self, pixels: slice) -> _Axis:
        """It for some of the pixels."""
        return _Axis(self.before[pixels], self.after[pixels], self.weight[pixels])


def label_map(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.uint16]:
    """The best label of each pixel: logits of shape (labels, rows, columns) to (height, width).

    As torch's ``interpolate(mode="bilinear", align_corners=False)`` and an argmax, in single precision. The
    order of sums is another, so pixels in which two labels tie within the last bits may differ.
    """
    down, across = _axis(logits.shape[1], height), _axis(logits.shape[2], width)
    rows, columns = max(_EDGE, _EDGE**2 // width), max(_EDGE, _EDGE**2 // height)
    best = np.empty((height, width), dtype=np.uint16)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            tile = slice(top, top + rows), slice(left, left + columns)
            best[tile] = _tile(logits, down.part(tile[0]), across.part(tile[1]))
    return best


def mask_file(mask: NDArray[np.bool_]) -> str:
    """A mask of shape (height, width) as a PNG file of one bit a pixel, white where it is true, in base64."""
    file = io.BytesIO()
    # The fastest level: there may be one of a large image for each label.
    Image.fromarray(mask).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _axis(points: int, pixels: int) -> _Axis:
    """Where pixels lie on the grid: centres on centres, none before the first point or after the last."""
    centres = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(points / pixels)
    place = np.maximum(centres - np.float32(0.5), np.float32(0.0))
    before = np.minimum(place.astype(np.intp), points - 1)
    weight = np.minimum(place - before.astype(np.float32), np.float32(1.0))
    return _Axis(before, np.minimum(before + 1, points - 1), weight)


def _tile(logits: NDArray[np.float32], down: _Axis, across: _Axis) -> NDArray[np.intp]:
    """The best labels of one tile."""
    top, left = down.before[0], across.before[0]
    grid = logits[:, top : down.after[-1] + 1, left : across.after[-1] + 1]
    values = grid.reshape(len(grid), -1)
    able = np.flatnonzero(values.max(axis=1) >= values.min(axis=1).max())
    if len(able) == 1:
        return able[:, None]
    grid = grid[able]
    weight = down.weight[:, None]
    lines = grid[:, down.before - top] * (1 - weight) + grid[:, down.after - top] * weight
    pixels = (
        lines[:, :, across.before - left] * (1 - across.weight)
        + lines[:, :, across.after - left] * across.weight
    )
    found: NDArray[np.intp] = able[pixels.argmax(axis=0)]
    return found
