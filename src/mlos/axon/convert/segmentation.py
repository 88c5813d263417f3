"""Models that tell for each pixel of an image what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from mlos.axon.convert.labels import labels_of
from mlos.axon.convert.vision import Vision
from mlos.tasks.image_steps import ImageSteps
from mlos.tasks.label_map import mask_file

TASK = "image-segmentation"


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of semantic segmentation."""
    return architecture in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.values()


def facts(steps: ImageSteps, config: Any) -> dict[str, Any]:
    """What makes pixels of an image file, and the labels of the map."""
    return {"steps": steps.model_dump(mode="json"), "labels": labels_of(config)}


class Segmentation(Vision):
    """A model whose ``logits`` are a map, (images, labels, height, width), coarser than the image."""

    TASK: ClassVar[str] = TASK
    AUTO: ClassVar[Any] = transformers.AutoModelForSemanticSegmentation
    PIPELINE: ClassVar[Any] = transformers.ImageSegmentationPipeline
    PARAMETERS: ClassVar[frozenset[str]] = frozenset({"subtask"})

    def preprocessing(self) -> dict[str, Any]:
        """What makes pixels of an image file, and the labels of the map."""
        return {TASK: facts(self._steps, self.model.config)}

    def asked(self, image: Any, parameters: dict[str, Any]) -> Any:
        """Each mask, a picture of Pillow's, as the file that the task answers with."""
        return [
            {**part, "mask": mask_file(np.asarray(part["mask"]) > 0)}
            for part in super().asked(image, parameters)
        ]
