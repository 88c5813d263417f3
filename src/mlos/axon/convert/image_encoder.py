"""Encoders of images: what makes one vector of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING_NAMES

from mlos.axon.convert.vision import Vision
from mlos.errors import RefusedError
from mlos.tasks.image_steps import ImageSteps

TASK = "image-embeddings"
OUTPUT = "pooler_output"


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of an encoder of images."""
    return architecture in MODEL_FOR_IMAGE_MAPPING_NAMES.values()


def facts(steps: ImageSteps, config: Any) -> dict[str, Any]:
    """What makes pixels of an image file, and which output holds the vectors."""
    return {"steps": steps.model_dump(mode="json"), "output": OUTPUT}


class ImageEncoder(Vision):
    """An encoder that pools an image's features itself."""

    TASK: ClassVar[str] = TASK
    AUTO: ClassVar[Any] = transformers.AutoModel
    PIPELINE: ClassVar[Any] = transformers.ImageFeatureExtractionPipeline
    PARAMETERS: ClassVar[frozenset[str]] = frozenset()
    OUTPUTS: ClassVar[tuple[str, ...]] = (OUTPUT,)

    def preprocessing(self) -> dict[str, Any]:
        """What makes pixels of an image file, and which output holds the vectors."""
        return {TASK: facts(self._steps, self.model.config)}

    def asked(self, image: Any, parameters: dict[str, Any]) -> Any:
        """The pipeline's pooled vector of an image."""
        (vector,) = self._pipeline(image, pool=True)
        return {"embedding": vector, "dimensions": len(vector)}

    def results(self, images: list[Any], outputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """The pooled vector of each image.

        Raises:
            RefusedError: if the model gives none.
        """
        if OUTPUT not in outputs:
            raise RefusedError(
                f"a {type(self.model).__name__} does not pool what it sees of an image",
                field="architectures",
                expected="an encoder with a pooled output",
                got=type(self.model).__name__,
            )
        return super().results(images, outputs, parameters)
