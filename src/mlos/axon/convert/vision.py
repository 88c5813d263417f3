"""Classifiers of images, and what they share with other models of one image processor and one output."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from mlos.axon.convert.export import Axes, Exporter, Flat
from mlos.axon.convert.family import (
    SAFE,
    Family,
    Made,
    check_known,
    choose_tasks,
    from_repository,
    load_model,
)
from mlos.axon.convert.image_processor import steps_of
from mlos.axon.convert.labels import labels_of, scores_of
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit
from mlos.model import InferenceRequest
from mlos.parity import Case
from mlos.tasks.image_steps import ImageSteps
from mlos.tasks.images import INPUT

TASK = "image-classification"
_AXES = {0: "batch"}
_CONFIGS = ("config.json", "preprocessor_config.json")


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of an image classifier."""
    return architecture in {
        name
        for value in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
        for name in ((value,) if isinstance(value, str) else value)
    }


def load_steps(source: Path) -> ImageSteps:
    """What the repository's image processor does to an image.

    Raises:
        RefusedError: if there is none, or it does what cannot be packaged.
    """
    return steps_of(load_processor(source))


def load_processor(source: Path) -> Any:
    """The repository's image processor.

    Raises:
        RefusedError: if it cannot be loaded.
    """
    auto: Any = transformers.AutoImageProcessor
    return from_repository(lambda: auto.from_pretrained(source, backend="pil", **SAFE))


def facts(steps: ImageSteps, config: Any) -> dict[str, Any]:
    """What makes pixels of an image file, and labels with scores of logits."""
    return {"steps": steps.model_dump(mode="json"), "labels": labels_of(config), "scores": scores_of(config)}


class Vision(Family):
    """A classifier and its image processor.

    A family that differs in its head alone says how with the names in capitals.
    """

    TASK: ClassVar[str] = TASK
    AUTO: ClassVar[Any] = transformers.AutoModelForImageClassification
    PIPELINE: ClassVar[Any] = transformers.ImageClassificationPipeline
    PARAMETERS: ClassVar[frozenset[str]] = frozenset({"top_k"})
    INPUTS: ClassVar[tuple[str, ...]] = (INPUT,)
    OUTPUTS: ClassVar[tuple[str, ...]] = ("logits",)

    def __init__(
        self, model: transformers.PreTrainedModel, processor: Any, source: Path, tasks: Iterable[str] | None
    ) -> None:
        self.model, self._source = model, source
        self.tasks = choose_tasks(type(model).__name__, [self.TASK], tasks)
        self._steps = steps_of(processor)
        self._pipeline = self.PIPELINE(model=model, image_processor=processor, device="cpu")

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if weights or image processor are missing, the processor does what cannot be packaged,
                or the model cannot do one of ``tasks``.
        """
        model = load_model(cls.AUTO, source)
        if model.main_input_name != INPUT:
            raise RefusedError(
                f"a {type(model).__name__} takes {model.main_input_name}", field=INPUT, expected=INPUT
            )
        return cls(model, load_processor(source), source, tasks)

    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """The model as one file, its configuration and its image processor's."""
        exported = export(
            Flat(self.model, self.INPUTS, self.OUTPUTS), self.example(), self.OUTPUTS, self.axes(), output
        )
        exported.tell(emit)
        for name in _CONFIGS:
            shutil.copyfile(self._source / name, output / name)
        return Made(
            artifact=exported.artifact,
            files=(*exported.files, *((name, "config") for name in _CONFIGS)),
            tools=exported.tools,
        )

    def example(self) -> dict[str, torch.Tensor]:
        """Tensors of each of the inputs to export with."""
        assert self._steps.size is not None  # steps_of saw to it
        return {INPUT: torch.zeros(2, 3, *self._steps.size)}

    def axes(self) -> Axes:
        """The free axes of inputs and outputs."""
        return dict.fromkeys((*self.INPUTS, *self.OUTPUTS), _AXES)

    def preprocessing(self) -> dict[str, Any]:
        """What makes pixels of an image file, and labels with scores of logits."""
        return {self.TASK: facts(self._steps, self.model.config)}

    def asked(self, image: Any, parameters: dict[str, Any]) -> Any:
        """The pipeline's result for one image, in the words of JSON."""
        return self._pipeline(image, **parameters)

    def results(self, images: list[Any], outputs: Any, parameters: dict[str, Any]) -> list[Any]:
        """The framework's result for each image, ``outputs`` being the model's for all of them."""
        return [self.asked(image, parameters) for image in images]

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer, by its own pipeline, which takes images one by one."""
        files = [request.image] if request.image is not None else request.images
        if not files:
            raise InvalidInputError(
                f"golden request {name} has no image", field=name, expected="image or images"
            )
        task = request.task or self.TASK
        self.require_task(name, task)
        check_known(name, request, self.PARAMETERS)
        images = [load_image(Image.open(io.BytesIO(file))) for file in files]
        encoded = self._pipeline.image_processor(images=images, return_tensors="pt")
        inputs = {tensor: encoded[tensor] for tensor in self.INPUTS}
        outputs: Any = self.model(**inputs)
        results = self.results(images, outputs, request.parameters)
        return Case(
            name=name,
            request=request,
            task=task,
            inputs={tensor: value.numpy() for tensor, value in inputs.items()},
            outputs={tensor: outputs[tensor].numpy() for tensor in self.OUTPUTS},
            result=results[0] if request.image is not None else results,
        )
