"""The label of each pixel is the framework's; a mask is a file of one bit a pixel."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from mlos.tasks.label_map import label_map, mask_file


@pytest.mark.parametrize(
    ("height", "width"), [(512, 512), (300, 451), (37, 1000), (50, 64), (1, 5000), (5000, 1), (1, 1)]
)
def test_it_is_torchs_interpolation_and_its_argmax(height: int, width: int) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 128, 96)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=(height, width), mode="bilinear", align_corners=False
    )[0].argmax(0)
    assert (label_map(logits, height, width) != wanted.numpy()).mean() <= 1e-4  # ties alone


def test_one_label_that_leads_everywhere_fills_the_image() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32)
    logits[3] += 100
    assert (label_map(logits, 200, 300) == 3).all()


def test_a_mask_is_white_where_it_is_true() -> None:
    mask = np.arange(35).reshape(5, 7) % 3 == 0
    image = Image.open(io.BytesIO(base64.b64decode(mask_file(mask))))
    assert (image.format, image.mode, image.size) == ("PNG", "1", (7, 5))
    np.testing.assert_array_equal(np.asarray(image.convert("L")), mask * 255)
