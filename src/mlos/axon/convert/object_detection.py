"""Models that find objects in an image: a label and a box for each of their queries."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

from mlos.axon.convert.export import Axes
from mlos.axon.convert.labels import labels_of
from mlos.axon.convert.vision import Vision
from mlos.errors import RefusedError
from mlos.tasks.image_steps import ImageSteps
from mlos.tasks.images import INPUT, MASK, PADDED

TASK = "object-detection"
_EXAMPLE = (2, 96, 160)
_AXES: Axes = {
    INPUT: {0: "batch", 2: PADDED[0], 3: PADDED[1]},
    MASK: {0: "batch", 1: PADDED[0], 2: PADDED[1]},
}


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of a detector."""
    return architecture in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()


def facts(steps: ImageSteps, config: Any) -> dict[str, Any]:
    """What makes pixels of an image file, and the labels of objects."""
    return {"steps": steps.model_dump(mode="json"), "labels": labels_of(config)}


class ObjectDetection(Vision):
    """A detector of DETR's kind, which sees images of any size, padded to one, beside a mask of their pixels.

    Detectors whose image processor is another than DETR's are refused by it: what they answer is read
    otherwise too.
    """

    TASK: ClassVar[str] = TASK
    AUTO: ClassVar[Any] = transformers.AutoModelForObjectDetection
    PIPELINE: ClassVar[Any] = transformers.ObjectDetectionPipeline
    PARAMETERS: ClassVar[frozenset[str]] = frozenset({"threshold"})
    INPUTS: ClassVar[tuple[str, ...]] = (INPUT, MASK)
    OUTPUTS: ClassVar[tuple[str, ...]] = ("logits", "pred_boxes")

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: as for any model of images, or if its backbone is one of the library timm.
        """
        try:
            found = super().load(source, tasks)
        except ImportError as error:
            raise RefusedError(
                f"transformers cannot load the repository: {str(error).strip().splitlines()[0]}",
                field="backbone_config",
                hint="a model with a backbone of timm needs that library; DETR's revision no_timm does not",
            ) from error
        if not found._steps.pad:
            raise RefusedError("the image processor makes no mask of an image's pixels", field="do_pad")
        return found

    def example(self) -> dict[str, torch.Tensor]:
        """One picture that fills its frame, and one that is padded."""
        images, height, width = _EXAMPLE
        mask = torch.ones(_EXAMPLE, dtype=torch.int64)
        mask[1, height // 2 :, :] = 0
        return {INPUT: torch.zeros(images, 3, height, width), MASK: mask}

    def axes(self) -> Axes:
        """Images, and their height and width; each has as many queries."""
        return {**_AXES, **{output: {0: "batch"} for output in self.OUTPUTS}}

    def preprocessing(self) -> dict[str, Any]:
        """What makes pixels of an image file, and the labels of objects."""
        return {TASK: facts(self._steps, self.model.config)}

    def results(self, images: list[Any], outputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """What the pipeline makes of the model's outputs.

        It would run images one by one; padded beside others they have slightly other outputs.
        """
        sizes = [torch.tensor([[image.height, image.width]], dtype=torch.int32) for image in images]
        parts = [{name: outputs[name][at : at + 1] for name in self.OUTPUTS} for at in range(len(images))]
        return [
            self._pipeline.postprocess(type(outputs)({"target_size": size, **part}), **parameters)
            for size, part in zip(sizes, parts, strict=True)
        ]
