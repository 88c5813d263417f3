"""What a framework's image processor does to an image, as the steps that a package keeps.

Processors of transformers share their steps and differ in a few: those are known here by class. A processor
that is not known is refused, since what it does beyond the shared steps cannot be told from its settings.
"""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from transformers.image_processing_backends import PilBackend
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.poolformer.image_processing_pil_poolformer import PoolFormerImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from mlos.errors import RefusedError
from mlos.tasks.image_steps import ImageSteps, Normalization

_KNOWN = (
    BeitImageProcessorPil,
    ConvNextImageProcessorPil,
    DetrImageProcessorPil,
    EfficientNetImageProcessorPil,
    LevitImageProcessorPil,
    MobileNetV2ImageProcessorPil,
    PoolFormerImageProcessorPil,
    SegformerImageProcessorPil,
)
"""Those that resize or preprocess in a way of their own, which is followed here."""
_WARPED = 384
"""From this size on, ConvNeXT's processor resizes to a square and does not crop."""


def steps_of(processor: Any) -> ImageSteps:
    """The steps of ``processor`` that make pixels of an RGB image.

    Raises:
        RefusedError: if it does anything else, or makes images of different sizes.
    """
    name = type(processor).__name__
    shared = type(processor)._preprocess is PilBackend._preprocess
    if not (shared and type(processor).resize is PilBackend.resize) and type(processor) not in _KNOWN:
        raise RefusedError(
            f"what a {name} does to an image is not known here",
            field="image_processor_type",
            expected="a processor that resizes, crops, rescales and normalizes alone",
            got=name,
        )
    pads = bool(getattr(processor, "do_pad", None))
    if pads and (
        type(processor) is not DetrImageProcessorPil or getattr(processor, "pad_size", None) is not None
    ):
        raise RefusedError(f"the {name} pads images, which cannot be packaged yet", field="do_pad")
    try:
        steps = ImageSteps(
            **_geometry(processor),
            resample=int(processor.resample if processor.resample is not None else 2),
            rescale=processor.rescale_factor if processor.do_rescale else None,
            offset=-1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0,
            normalize=_normalizations(processor),
            pad=pads,
        )
    except ValidationError as error:
        raise RefusedError(
            f"the {name}'s settings are out of bounds: {error.errors()[0]['msg']}",
            field=".".join(str(part) for part in error.errors()[0]["loc"]),
        ) from error
    if steps.size is None and not steps.pad:
        raise RefusedError(
            f"the {name} makes images of different sizes, which cannot be one batch",
            field="size",
            expected="a height and a width",
            got=str(processor.size),
        )
    return steps


def _geometry(processor: Any) -> dict[str, Any]:
    """The steps ``resize`` and ``crop``."""
    found: dict[str, Any] = {}
    size = processor.size
    if processor.do_resize and isinstance(processor, ConvNextImageProcessorPil):
        edge = size.shortest_edge
        if edge < _WARPED:
            found = {"resize": int(edge / processor.crop_pct), "crop": (edge, edge)}
        else:
            found = {"resize": (edge, edge)}
    elif processor.do_resize and isinstance(processor, PoolFormerImageProcessorPil) and processor.crop_pct:
        found = {"resize": _before_crop(size, processor.crop_pct)}
    elif processor.do_resize and size.shortest_edge and not size.longest_edge:
        edge = size.shortest_edge
        found = {"resize": int(256 / 224 * edge) if isinstance(processor, LevitImageProcessorPil) else edge}
    elif processor.do_resize and isinstance(processor, DetrImageProcessorPil) and size.shortest_edge:
        found = {"resize": size.shortest_edge, "longest": size.longest_edge}
    elif processor.do_resize and size.height and size.width:
        found = {"resize": (size.height, size.width)}
    elif processor.do_resize:
        raise RefusedError(
            "the image processor resizes in a way that cannot be packaged yet",
            field="size",
            expected="shortest_edge, or height and width",
            got=str(size),
        )
    if getattr(processor, "do_center_crop", None):
        if "crop" in found:
            raise RefusedError("the image processor crops twice", field="do_center_crop")
        found["crop"] = (processor.crop_size.height, processor.crop_size.width)
    return found


def _before_crop(size: Any, share: float) -> int | tuple[int, int]:
    """What PoolFormer's processor resizes to, so that the crop keeps ``share``; a square is a shortest edge."""
    if size.shortest_edge or size.height == size.width:
        return int((size.shortest_edge or size.height) / share)
    return int(size.height / share), int(size.width / share)


def _normalizations(processor: Any) -> tuple[Normalization, ...]:
    """One, or none; EfficientNet's processor divides by the spread a second time for a model with its head."""
    steps: list[Normalization] = []
    if processor.do_normalize:
        steps.append(Normalization(mean=_colours(processor.image_mean), std=_colours(processor.image_std)))
    if isinstance(processor, EfficientNetImageProcessorPil) and processor.include_top:
        steps.append(Normalization(mean=_colours(0.0), std=_colours(processor.image_std)))
    return tuple(steps)


def _colours(value: Any) -> Any:
    """A number for each colour."""
    return (value,) * 3 if isinstance(value, int | float) else tuple(value)
