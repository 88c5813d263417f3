"""The masks of an image's parts, as a task answers them: which pixels of the image belong to which label."""

from __future__ import annotations

import base64
import binascii
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Masks: TypeAlias = Mapping[tuple[str, int], NDArray[np.bool_]]
"""By label, and how many parts of the same label came before: shape (height, width)."""


def read_masks(parts: Sequence[Mapping[str, Any]]) -> Masks:
    """The masks of objects with a ``label`` and a ``mask``, a PNG file in base64, in their order.

    Raises:
        ValueError: if one is no such file.
    """
    seen: Counter[str] = Counter()
    masks: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for part in parts:
        label = str(part["label"])
        try:
            file = io.BytesIO(base64.b64decode(part["mask"], validate=True))
            mask = np.asarray(Image.open(file, formats=("PNG",)).convert("L")) > 0
        except (binascii.Error, TypeError, OSError, SyntaxError) as error:
            raise ValueError(f"the mask of {label!r} cannot be read: {error}") from error
        masks[label, seen[label]] = mask
        seen[label] += 1
    return masks


def share_differing(one: Masks, other: Masks) -> float:
    """Share of the pixels that are in another part: what is in a mask of one side alone, over all masks.

    A pixel that changes its part leaves one mask and enters another, so it is seen twice. All masks are of one
    size.
    """
    some = next(iter(one.values()))
    seen = sum(
        int((one.get(key, False) ^ other.get(key, np.False_)).sum()) for key in dict.fromkeys([*one, *other])
    )
    return seen / 2 / some.size
