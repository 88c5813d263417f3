"""Zero-shot image classification: which of the labels that a request brings fits an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.images import INPUT, ImageEncoder
from mlos.tasks.prepared import (
    Known,
    Limits,
    Prepared,
    check_parameters,
    check_texts,
    require_finite,
    subject_among,
)
from mlos.tasks.scores import softmax
from mlos.tasks.task import SinglePass
from mlos.tasks.text import TextEncoder

TEMPLATE = "This is a photo of {}."
"""What a label is put into where a request says no other."""
_TEXTS, _IMAGES = "text_embeds", "image_embeds"


def _is_template(value: Any) -> bool:
    """Whether ``{}`` is in it and no other brace: a format's could read attributes, or ask for any width."""
    return isinstance(value, str) and "{}" in value and not {"{", "}"} & set(value.replace("{}", ""))


_KNOWN: Known = {"hypothesis_template": ("a text with {} for the label and no other brace", _is_template)}


class ZeroShotImageClassification(SinglePass):
    """Each of the request's labels with its score, as the framework's pipeline of that name answers.

    A request has images, and its ``texts`` are the labels. It reads from
    ``manifest.preprocessing["zero-shot-image-classification"]``: ``logit_scale`` (what cosines are multiplied
    by), and what :class:`~mlos.tasks.images.ImageEncoder` and :class:`~mlos.tasks.text.TextEncoder` read. The
    model gives ``text_embeds`` and ``image_embeds`` of length 1. An image is answered with a list of
    ``{"score", "label"}``, best first; several images, with a list of such lists. A label whose text is longer
    than the model takes is cut.
    """

    name: ClassVar[str] = "zero-shot-image-classification"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        taken = manifest.artifact.inputs
        self._images = ImageEncoder(manifest, self.name, limits, [spec for spec in taken if spec.name == INPUT])
        self._texts = TextEncoder(folder, manifest, self.name, [spec for spec in taken if spec.name != INPUT])
        self._max_text_bytes = limits.max_text_bytes
        scale = self._texts.options.get("logit_scale")
        if not isinstance(scale, float) or not 0 < scale < float("inf"):
            raise RefusedError(
                f"the package says no logit_scale for the task {self.name}",
                field=f"preprocessing.{self.name}.logit_scale",
                expected="a number above 0",
                got=repr(scale),
            )
        self._scale = scale
        given = {spec.name for spec in manifest.artifact.outputs}
        for output in (_TEXTS, _IMAGES):
            if output not in given:
                raise RefusedError(f"the model gives no {output} to compare", field=output)

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images with labels."""
        return request.texts is not None and (request.image is not None or request.images is not None)

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Images become pixels, each label a text."""
        kind = subject_among(request, self.name, "image, texts", "images, texts")
        labels = request.texts or []
        files = [request.image] if request.image is not None else request.images or []
        for field, held in (("texts", labels), ("images", files)):
            if not held:
                raise InvalidInputError(
                    f"{field} is empty", field=field, expected="at least one", got="an empty list"
                )
        template = check_parameters(request, _KNOWN).get("hypothesis_template", TEMPLATE)
        check_texts([*labels, template], "texts", self._max_text_bytes)
        # Before they are written out: a long template is repeated for each label, a label for each of its {}.
        size = len(labels) * len(template) + template.count("{}") * sum(map(len, labels))
        if size > self._max_text_bytes:
            raise PayloadTooLargeError(
                f"texts: {len(labels)} labels in their template are over the limit on text",
                field="texts",
                expected=f"at most {self._max_text_bytes} bytes",
                got=f"{size} characters",
                hint="send fewer labels, or a shorter hypothesis_template",
            )
        field = kind.partition(", ")[0]
        tensors = self._texts.encode([template.replace("{}", label) for label in labels])
        return Prepared(
            self._images.encode(files, field) | tensors, (_TEXTS, _IMAGES), (field == "image", labels)
        )

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Scores are shares of one: softmax of the scaled cosines of an image and all labels."""
        single, labels = prepared.context
        texts, images = (require_finite(name, computed[name]) for name in (_TEXTS, _IMAGES))
        cosines = images.astype(np.float64) @ texts.astype(np.float64).T
        answers = [self._ranking(row, labels) for row in cosines * self._scale]
        return answers[0] if single else answers

    @staticmethod
    def _ranking(logits: NDArray[np.float64], labels: list[str]) -> list[dict[str, Any]]:
        scores = softmax(logits)
        best = np.argsort(-scores, kind="stable").tolist()
        return [{"score": float(scores[number]), "label": labels[number]} for number in best]
