"""Models that put texts and images into one space: an encoder of each, side by side."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from PIL import Image
from transformers.image_utils import load_image

from mlos.axon.convert.export import export
from mlos.axon.convert.family import (
    SAFE,
    Family,
    Made,
    check_known,
    choose_tasks,
    from_repository,
    load_model,
    load_tokenizer,
    most_tokens,
    save_tokenizer,
)
from mlos.axon.convert.image_processor import steps_of
from mlos.errors import InvalidInputError
from mlos.host.child import Emit
from mlos.model import Artifact, InferenceRequest
from mlos.parity import Case
from mlos.tasks.images import INPUT

TASK = "zero-shot-image-classification"
_TEXT = ("input_ids", "attention_mask")
_CONFIGS = ("config.json", "preprocessor_config.json")
_TEMPLATE = "This is a photo of {}."
"""The framework's own default, stated so that its pipeline and its tokenizer are asked the same."""
_EXAMPLE = (2, 8)


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of such a model."""
    return architecture == "CLIPModel"


class ImageText(Family):
    """Both encoders, the tokenizer and the image processor."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        processor: Any,
        source: Path,
        tasks: Iterable[str] | None,
    ) -> None:
        self.model, self.tokenizer, self._source = model, tokenizer, source
        self.tasks = choose_tasks(type(model).__name__, [TASK], tasks)
        self._steps = steps_of(processor)
        self._max_length = most_tokens(tokenizer, model.config.text_config)
        pipeline: Any = transformers.ZeroShotImageClassificationPipeline
        self._pipeline = pipeline(model=model, tokenizer=tokenizer, image_processor=processor, device="cpu")

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if weights, tokenizer or image processor are missing, the processor does what cannot
                be packaged, or the model cannot do one of ``tasks``.
        """
        model = load_model(transformers.AutoModelForZeroShotImageClassification, source)
        auto: Any = transformers.AutoImageProcessor
        processor = from_repository(lambda: auto.from_pretrained(source, backend="pil", **SAFE))
        return cls(model, load_tokenizer(source), processor, source, tasks)

    def write(self, output: Path, emit: Emit) -> Made:
        """An ONNX file of each encoder, the tokenizer, and the configurations of model and image processor."""
        assert self._steps.size is not None  # steps_of saw to it
        ids = torch.randint(3, 100, _EXAMPLE, generator=torch.Generator().manual_seed(0))
        tokens = {0: "texts", 1: "sequence"}
        text = export(
            _TextSide(self.model),
            dict(zip(_TEXT, (ids, torch.ones_like(ids)), strict=True)),
            ("text_embeds",),
            dict.fromkeys(_TEXT, tokens) | {"text_embeds": {0: "texts"}},
            output,
            "text.onnx",
        )
        image = export(
            _ImageSide(self.model),
            {INPUT: torch.zeros(2, 3, *self._steps.size)},
            ("image_embeds",),
            {key: {0: "images"} for key in (INPUT, "image_embeds")},
            output,
            "image.onnx",
        )
        for side in (text, image):
            side.tell(emit)
        save_tokenizer(self.tokenizer, output / "tokenizer.json")
        for name in _CONFIGS:
            shutil.copyfile(self._source / name, output / name)
        sides = {"text": text.artifact, "image": image.artifact}
        return Made(
            artifact=Artifact(
                format="onnx",
                precision="fp32",
                inputs=tuple(spec for side in sides.values() for spec in side.inputs),
                outputs=tuple(spec for side in sides.values() for spec in side.outputs),
                parts=sides,
            ),
            files=(
                *text.files,
                *image.files,
                ("tokenizer.json", "tokenizer"),
                *((name, "config") for name in _CONFIGS),
            ),
            tools=image.tools | {"exporter": f"{text.exporter}, {image.exporter}"},
        )

    def preprocessing(self) -> dict[str, Any]:
        """What makes tensors of images and labels, and by what cosines are multiplied."""
        scale: Any = self.model.logit_scale
        return {
            TASK: {
                "steps": self._steps.model_dump(mode="json"),
                "max_length": self._max_length,
                "pad_token": self.tokenizer.pad_token,
                "logit_scale": float(scale.detach().exp()),
            }
        }

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer, by its pipeline of that name."""
        files = [request.image] if request.image is not None else request.images
        if not files or not request.texts:
            raise InvalidInputError(
                f"golden request {name} has no image with texts", field=name, expected="image or images, texts"
            )
        self.require_task(name, request.task or TASK)
        check_known(name, request, {"hypothesis_template"})
        images = [load_image(Image.open(io.BytesIO(file))) for file in files]
        template = request.parameters.get("hypothesis_template", _TEMPLATE)
        encoded = self.tokenizer(
            [template.format(label) for label in request.texts], padding=True, return_tensors="pt"
        )
        inputs = {tensor: encoded[tensor] for tensor in _TEXT}
        inputs |= {INPUT: self._pipeline.image_processor(images=images, return_tensors="pt")[INPUT]}
        outputs: Any = self.model(**inputs)
        results = [
            self._pipeline(image, candidate_labels=request.texts, hypothesis_template=template)
            for image in images
        ]
        return Case(
            name=name,
            request=request,
            task=TASK,
            inputs={tensor: value.numpy() for tensor, value in inputs.items()},
            outputs={
                "text_embeds": outputs.text_embeds.numpy(),
                "image_embeds": outputs.image_embeds.numpy(),
            },
            result=results[0] if request.image is not None else results,
        )


class _Side(torch.nn.Module):
    """One of the encoders, with its projection and the length 1 that the whole model gives its embeddings."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


class _TextSide(_Side):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        ids, mask = tensors
        found = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return (found / found.norm(dim=-1, keepdim=True),)


class _ImageSide(_Side):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        found = self.model.get_image_features(pixel_values=tensors[0]).pooler_output
        return (found / found.norm(dim=-1, keepdim=True),)
