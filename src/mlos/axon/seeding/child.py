"""The child that builds a seeded model, confined to its destination.

Plain random initialisation makes models that answer the same whatever they are asked, and a parity of such
answers could not fail. So the weights are calibrated layer by layer (after Mishkin and Matas, "All you need is
a good init", 2016): one batch runs through the model, and each layer is scaled, as it is reached, until its
output has the spread that the recipe gives it. Batch normalisation takes the batch's own statistics. What all
samples have in common is taken out of a classifier's logits, for it would decide the same label for all.

The same recipe gives the same bytes: the numbers are uniform (exact on every processor, where normal ones pass
through a logarithm), each tensor has a generator of its own, and factors are rounded to quarters of an octave,
which swallows the last bits in which processors differ. Statistics are rounded too. There are thousands of
them, so one or another would lie on the edge of its step: where a batch holds fractions, all is computed in
double precision, whose last bits move none across.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers.initialization import no_init_weights

from mlos.axon.seeding.batch import batch
from mlos.axon.seeding.densenet import DenseNet, DenseNetConfig
from mlos.axon.seeding.tokenizer import save_json, save_tokenizer
from mlos.errors import MlosError
from mlos.host.child import serve

_NOISE = 0.1
"""Spread of biases around 0, and of the gains of normalisations around 1: parity shall see them all."""
_QUARTERS = (1.0, 2.0**0.25, 2.0**0.5, 2.0**0.75)
_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
_GAIN = re.compile(r"(weight|layer_scale\w*|lambda_?\d)$")
"""Vectors that multiply; scales of residual branches are published near 0 and trained away from it."""
_WHOLE = re.compile(r"query_position_embeddings\.weight$")
"""Tables that are added to every sample as they are, and not looked up."""
_MEAN_STEP = 2.0**-6
"""Means are rounded to it; beside spreads near 1 it is small."""

Emit = Callable[[dict[str, Any]], None]


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Build, fill, calibrate and save the model of ``request["recipe"]``; returns its number of parameters."""
    torch.set_num_threads(1)  # the order of sums decides their last bits
    recipe, destination = request["recipe"], Path(request["destination"])
    model = build(recipe["architecture"], recipe["config"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters != recipe["parameters"]:
        raise MlosError(
            f"{recipe['architecture']} of this configuration has {parameters} parameters, "
            f"the catalogue says {recipe['parameters']}",
            field="parameters",
            expected=str(recipe["parameters"]),
            got=str(parameters),
        )
    fill(model, recipe["seed"])
    calibrate(model, recipe["seed"], [(re.compile(name), spread) for name, spread in recipe["spread"]], emit)
    if recipe.get("form") == "onnx":
        # Imported here: the exporter takes seconds to load, which no other recipe has to wait for.
        from mlos.axon.seeding.onnx_file import save_onnx

        save_onnx(model, recipe["seed"], destination)
        return {"parameters": parameters}
    save_weights(model, _dtype(recipe["config"]), destination / "model.safetensors")
    save_json(recipe["config"], destination / "config.json")
    for name, content in recipe.get("files", {}).items():
        (destination / name).parent.mkdir(exist_ok=True)
        save_json(content, destination / name)
    if "tokenizer" in recipe:
        carried = {name: Path(path) for name, path in request["tokenizer"].items()}
        save_tokenizer(recipe["tokenizer"], carried, destination)
    return {"parameters": parameters}


def build(architecture: str, config: dict[str, Any]) -> transformers.PreTrainedModel:
    """The class ``architecture``, of transformers or our own, with ``config``, in eval mode."""
    if architecture == DenseNet.__name__:
        own = DenseNet(DenseNetConfig(**config))
        own.train(False)
        return own
    kind = getattr(transformers, architecture, None)
    if kind is None:
        raise MlosError(f"transformers {transformers.__version__} has no class {architecture}")
    known = transformers.AutoConfig.for_model(**config)
    with no_init_weights():  # which takes longer than all else here; every parameter is filled anyway
        model: transformers.PreTrainedModel = kind(known)
    model.tie_weights()  # a part of the initialisation that was left out
    model.train(False)
    return model


@torch.no_grad()
def fill(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values: matrices of spread 1 / sqrt(fan-in), gains near 1, biases near 0.

    What is added to every sample as it is (positions, class tokens, whose first axis is 1; queries) has
    spread 1. Frozen batch normalisations keep their gains and biases among their buffers.

    A lone number is near what the configuration says it begins with (``NAME_init_value``), or 0.
    """
    for name, parameter in model.named_parameters():  # a tied one comes once, under its first name
        noise = _uniform(parameter.shape, seed, name)
        if (parameter.dim() == 3 and len(parameter) == 1) or _WHOLE.search(name):
            parameter.copy_(noise)
        elif parameter.dim() > 1:
            parameter.copy_(noise.div_(math.sqrt(parameter[0].numel())))  # in place: one may be 1.6 GB
        elif parameter.dim() == 0:
            start = getattr(getattr(model, "config", None), f"{name.rpartition('.')[2]}_init_value", 0.0)
            parameter.copy_(noise * _NOISE + start)
        else:
            parameter.copy_(noise * _NOISE + (1 if _GAIN.search(name) else 0))
    for name, module in model.named_modules():
        for kind in ("weight", "bias") if _is_frozen(module) else ():
            buffer = module.get_buffer(kind)
            buffer.copy_(_uniform(buffer.shape, seed, f"{name}.{kind}") * _NOISE + (kind == "weight"))


@torch.no_grad()
def calibrate(
    model: transformers.PreTrainedModel, seed: int, spreads: list[tuple[re.Pattern[str], float]], emit: Emit
) -> None:
    """Scale each layer's weights until its output has its spread, in the order in which a batch reaches them.

    A weight that several layers share is scaled once, for the first of them. Batch normalisations on the way
    get the statistics of what reaches them, and gains that give their output its spread.
    """
    samples = batch(model, seed)
    fine = any(each.is_floating_point() for each in samples.values())
    if fine:
        torch.nn.Module.to(model, torch.float64)
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "weight", None), torch.nn.Parameter) and layer.weight.dim() > 1
    }
    emit({"layers": len({id(layer.weight) for layer in layers.values()})})
    scaled: set[int] = set()

    def wanted(name: str) -> float:
        return next((spread for pattern, spread in spreads if pattern.search(name)), 1.0)

    def scale(name: str, layer: torch.nn.Module, output: torch.Tensor) -> torch.Tensor:
        weight = layer.weight
        if id(weight) in scaled:
            return output
        assert isinstance(weight, torch.nn.Parameter)
        scaled.add(id(weight))
        bias = getattr(layer, "bias", None)
        if bias is not None and isinstance(layer, torch.nn.Conv2d):
            bias = bias[:, None, None]  # channels come before height and width
        elif bias is not None and type(layer) is torch.nn.Conv1d:
            bias = bias[:, None]
        linear = output if bias is None else output - bias
        varying = common = linear
        shared = _shared_axes(model, output)
        if bias is not None and shared:
            common = linear.mean(shared)
            common = common[:, None, None] if linear.dim() == 4 else common
            varying = linear - common
        spread = float(varying.double().std())
        # A first layer over queries sees zeros alone, and keeps its weights.
        factor = _rounded(wanted(name) / spread) if spread else 1.0
        weight.mul_(factor)
        if bias is not None and varying is not linear:
            bias.sub_(_stepped(common * factor))
        emit({"done": 1})
        linear = linear * factor
        return linear if bias is None else linear + bias

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: scale(name, layer, output))
        for name, layer in layers.items()
    ]
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS) or _is_frozen(module):
            gains = module.weight
            assert isinstance(gains, torch.Tensor)
            gains.mul_(wanted(name))
            hooks.append(module.register_forward_pre_hook(_take_statistics))
    try:
        model(**samples)
    finally:
        for hook in hooks:
            hook.remove()
    if fine:
        torch.nn.Module.to(model, torch.float32)  # the framework's own method is not typed


def _shared_axes(model: transformers.PreTrainedModel, output: torch.Tensor) -> tuple[int, ...]:
    """Over which axes a layer's output is decided by sample, pixel or query; none, if nothing is decided by it.

    It is a classifier's, with a number for each label, or a detector's, with one more or a box for each query.
    """
    labels, queries = model.config.num_labels or 0, getattr(model.config, "num_queries", None)
    if output.dim() in (2, 4) and output.shape[1] == labels:
        return (0,) if output.dim() == 2 else (0, 2, 3)
    if output.dim() == 3 and output.shape[1] == queries and output.shape[2] in (labels + 1, 4):
        return (0, 1)
    return ()


def _take_statistics(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Give a batch normalisation mean and variance of its input, by channel."""
    taken = inputs[0]  # channels are the second axis, whatever follows
    variance, mean = torch.var_mean(taken, dim=[axis for axis in range(taken.dim()) if axis != 1])
    module.get_buffer("running_mean").copy_(_stepped(mean))
    module.get_buffer("running_var").copy_(torch.tensor([_rounded(each) for each in variance.tolist()]))


def _is_frozen(module: torch.nn.Module) -> bool:
    """Whether it is a batch normalisation that keeps all it has in buffers, as in detectors' backbones."""
    return {"weight", "bias", "running_mean", "running_var"} <= {
        name for name, _ in module.named_buffers(recurse=False)
    }


def _stepped(values: torch.Tensor) -> torch.Tensor:
    """Each value to the nearest step."""
    return torch.round(values / _MEAN_STEP) * _MEAN_STEP


def _uniform(shape: torch.Size, seed: int, name: str) -> torch.Tensor:
    """Uniform random numbers of mean 0 and variance 1, from a generator of this tensor's own."""
    own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
    numbers = torch.rand(shape, generator=torch.Generator().manual_seed(own))
    return numbers.sub_(0.5).mul_(math.sqrt(12))


def _rounded(factor: float) -> float:
    """The nearest quarter of an octave."""
    octave, quarter = divmod(round(4 * math.log2(factor)), 4)
    return math.ldexp(_QUARTERS[quarter], octave)


def _dtype(config: dict[str, Any]) -> torch.dtype:
    """The element type that the configuration says its weights are published in."""
    dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), None)
    if not isinstance(dtype, torch.dtype):
        raise MlosError("the configuration names no element type of torch", field="torch_dtype")
    return dtype


def save_weights(model: torch.nn.Module, dtype: torch.dtype, path: Path) -> None:
    """Write the model's weights as ``dtype``, which is what the model has from here on.

    Each tensor takes the place of the one it was made of, so that never both models are in memory.
    """
    torch.nn.Module.to(model, dtype)
    distinct: dict[int, str] = {}
    tensors = model.state_dict()
    for name, tensor in tensors.items():  # tied tensors are stored once, under their first name
        distinct.setdefault(tensor.data_ptr(), name)
    save_file({name: tensors[name].contiguous() for name in distinct.values()}, path, {"format": "pt"})


if __name__ == "__main__":
    serve(main)
