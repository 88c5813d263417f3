"""A seeded model as a publisher of ONNX files would publish it: one file, and answers to check it by.

The answers are laid out as the ONNX Model Zoo lays out its own
(https://github.com/onnx/models): ``test_data_set_N/input_M.pb`` and ``output_M.pb``, each a ``TensorProto``.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
import transformers
from onnx import numpy_helper

from mlos.axon.convert.export import Flat
from mlos.axon.convert.onnx_export import to_onnx, weights_beside
from mlos.axon.seeding.batch import batch

_OUTPUT = "logits"
_SETS = (1, 3, 1)
"""Pictures in each set of test data."""


@torch.no_grad()
def save_onnx(model: transformers.PreTrainedModel, seed: int, destination: Path) -> None:
    """Write ``model.onnx``, weights inside and the batch free, and the framework's answers beside it.

    The pictures that are asked about are others than those the model was calibrated on.
    """
    given = model.main_input_name
    pictures = batch(model, seed + 1)[given].to(torch.float32)
    axes = {name: {0: "batch"} for name in (given, _OUTPUT)}
    to_onnx(Flat(model, (given,), (_OUTPUT,)), {given: pictures[:2]}, (_OUTPUT,), axes, destination)
    path = destination / "model.onnx"
    whole = onnx.load(path)
    path.write_bytes(whole.SerializeToString(deterministic=True))
    (destination / weights_beside(path.name)).unlink()
    for number, count in enumerate(_SETS):
        first = sum(_SETS[:number])
        share = pictures[first : first + count]
        folder = destination / f"test_data_set_{number}"
        folder.mkdir()
        for kind, name, tensor in (("input", given, share), ("output", _OUTPUT, model(share)[_OUTPUT])):
            proto = numpy_helper.from_array(tensor.numpy(), name)
            (folder / f"{kind}_0.pb").write_bytes(proto.SerializeToString(deterministic=True))
