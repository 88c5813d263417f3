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

from mlos.axon.convert.export import Exporter
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
TEXTS, IMAGES = "embeddings", "image-embeddings"
_TEXT = ("input_ids", "attention_mask")
_TEXT_OUTPUT, _IMAGE_OUTPUT = "text_embeds", "image_embeds"
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
        self.tasks = choose_tasks(type(model).__name__, [TASK, TEXTS, IMAGES], tasks)
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

    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """A file of each encoder, the tokenizer, and the configurations of model and image processor."""
        assert self._steps.size is not None  # steps_of saw to it
        ids = torch.randint(3, 100, _EXAMPLE, generator=torch.Generator().manual_seed(0))
        tokens = {0: "texts", 1: "sequence"}
        text = export(
            _TextSide(self.model),
            dict(zip(_TEXT, (ids, torch.ones_like(ids)), strict=True)),
            (_TEXT_OUTPUT,),
            dict.fromkeys(_TEXT, tokens) | {_TEXT_OUTPUT: {0: "texts"}},
            output,
            "text",
        )
        image = export(
            _ImageSide(self.model),
            {INPUT: torch.zeros(2, 3, *self._steps.size)},
            (_IMAGE_OUTPUT,),
            {key: {0: "images"} for key in (INPUT, _IMAGE_OUTPUT)},
            output,
            "image",
        )
        for side in (text, image):
            side.tell(emit)
        save_tokenizer(self.tokenizer, output / "tokenizer.json")
        for name in _CONFIGS:
            shutil.copyfile(self._source / name, output / name)
        sides = {"text": text.artifact, "image": image.artifact}
        return Made(
            artifact=Artifact(
                format=text.artifact.format,
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
            tools=image.tools | {"exporter": f"{text.tools['exporter']}, {image.tools['exporter']}"},
        )

    def preprocessing(self) -> dict[str, Any]:
        """What makes tensors of images and texts, by what cosines are multiplied, which outputs are vectors."""
        scale: Any = self.model.logit_scale
        steps = {"steps": self._steps.model_dump(mode="json")}
        tokens = {"max_length": self._max_length, "pad_token": self.tokenizer.pad_token}
        facts = {
            TASK: steps | tokens | {"logit_scale": float(scale.detach().exp())},
            TEXTS: tokens | {"output": _TEXT_OUTPUT, "pooling": "model"},
            IMAGES: steps | {"output": _IMAGE_OUTPUT},
        }
        return {task: facts[task] for task in self.tasks}

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer: its pipeline's, or the features of one side at length 1."""
        task = request.task or self._task(request)
        self.require_task(name, task)
        match task:
            case "embeddings":
                return self._embed_texts(name, request)
            case "image-embeddings":
                return self._embed_images(name, request)
            case _:
                return self._classify(name, request)

    @staticmethod
    def _task(request: InferenceRequest) -> str:
        images = request.image is not None or request.images is not None
        if images and request.texts is None:
            return IMAGES
        return TASK if images else TEXTS

    def _classify(self, name: str, request: InferenceRequest) -> Case:
        files = _files(request)
        if not files or not request.texts:
            raise InvalidInputError(
                f"golden request {name} has no image with texts", field=name, expected="image or images, texts"
            )
        check_known(name, request, {"hypothesis_template"})
        images = [load_image(Image.open(io.BytesIO(file))) for file in files]
        template = request.parameters.get("hypothesis_template", _TEMPLATE)
        inputs = self._tokens([template.format(label) for label in request.texts]) | self._pixels(images)
        outputs: Any = self.model(**inputs)
        results = [
            self._pipeline(image, candidate_labels=request.texts, hypothesis_template=template)
            for image in images
        ]
        embeds = {_TEXT_OUTPUT: outputs.text_embeds, _IMAGE_OUTPUT: outputs.image_embeds}
        return _case(name, request, TASK, inputs, embeds, results, single=request.image is not None)

    def _embed_texts(self, name: str, request: InferenceRequest) -> Case:
        texts = [request.text] if request.text is not None else request.texts
        if not texts:
            raise InvalidInputError(f"golden request {name} has no text", field=name, expected="text or texts")
        check_known(name, request, ())
        inputs = self._tokens(texts)
        model: Any = self.model
        vectors = _unit(model.get_text_features(**inputs).pooler_output)
        results = [_vector(vector) for vector in vectors]
        single = request.text is not None
        return _case(name, request, TEXTS, inputs, {_TEXT_OUTPUT: vectors}, results, single=single)

    def _embed_images(self, name: str, request: InferenceRequest) -> Case:
        files = _files(request)
        if not files:
            raise InvalidInputError(
                f"golden request {name} has no image", field=name, expected="image or images"
            )
        check_known(name, request, ())
        inputs = self._pixels([load_image(Image.open(io.BytesIO(file))) for file in files])
        model: Any = self.model
        vectors = _unit(model.get_image_features(**inputs).pooler_output)
        results = [_vector(vector) for vector in vectors]
        single = request.image is not None
        return _case(name, request, IMAGES, inputs, {_IMAGE_OUTPUT: vectors}, results, single=single)

    def _tokens(self, texts: list[str]) -> dict[str, torch.Tensor]:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        return {tensor: encoded[tensor] for tensor in _TEXT}

    def _pixels(self, images: list[Any]) -> dict[str, torch.Tensor]:
        return {INPUT: self._pipeline.image_processor(images=images, return_tensors="pt")[INPUT]}


def _files(request: InferenceRequest) -> list[bytes]:
    return [request.image] if request.image is not None else request.images or []


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """At length 1, as the whole model gives its embeddings; the features of one side have any."""
    scaled: torch.Tensor = vectors / vectors.norm(dim=-1, keepdim=True)
    return scaled


def _vector(vector: torch.Tensor) -> dict[str, Any]:
    return {"embedding": vector.tolist(), "dimensions": len(vector)}


def _case(
    name: str,
    request: InferenceRequest,
    task: str,
    inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    results: list[Any],
    *,
    single: bool,
) -> Case:
    return Case(
        name=name,
        request=request,
        task=task,
        inputs={tensor: value.numpy() for tensor, value in inputs.items()},
        outputs={tensor: value.numpy() for tensor, value in outputs.items()},
        result=results[0] if single else results,
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
        return (_unit(found),)


class _ImageSide(_Side):
    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor]:
        found = self.model.get_image_features(pixel_values=tensors[0]).pooler_output
        return (_unit(found),)
