"""Image classification: which of a model's labels fit an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.images import ImageEncoder, images_of
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, is_whole, require_finite
from mlos.tasks.scores import SCORES
from mlos.tasks.task import SinglePass

_OUTPUT = "logits"
_MOST = 1000
_TOP_K = 5
_KNOWN: Known = {"top_k": (f"a whole number from 1 to {_MOST}", lambda value: is_whole(value, 1, _MOST))}


class ImageClassification(SinglePass):
    """The best labels for each image, as the framework's image-classification pipeline answers.

    It reads from ``manifest.preprocessing["image-classification"]``: ``labels`` (their names in the order of
    the model's ``logits``), ``scores`` (how those become scores: ``softmax``, ``sigmoid`` or ``none``), and
    what :class:`~mlos.tasks.images.ImageEncoder` reads. The parameter ``top_k`` (1 to 1000, default 5) says
    how many; no more than there are labels are answered. An image is answered with a list of
    ``{"label", "score"}``, best first; several images, with a list of such lists.
    """

    name: ClassVar[str] = "image-classification"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = ImageEncoder(manifest, self.name, limits)
        labels, scores = (self._encoder.options.get(key) for key in ("labels", "scores"))
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise RefusedError(
                f"the package names no labels for the task {self.name}",
                field=f"preprocessing.{self.name}.labels",
                expected="a list of names",
                got=f"{labels!r:.100}",
            )
        if not isinstance(scores, str) or scores not in SCORES:
            raise RefusedError(
                "the package does not say how logits become scores",
                field=f"preprocessing.{self.name}.scores",
                expected=", ".join(SCORES),
                got=repr(scores),
            )
        self._labels: list[str] = labels
        self._scores = SCORES[scores]
        shapes = {spec.name: spec.shape for spec in manifest.artifact.outputs}
        if shapes.get(_OUTPUT, ())[1:] != (len(labels),):
            raise RefusedError(
                f"the model's {_OUTPUT} are not as many as its labels",
                field=_OUTPUT,
                expected=f"shape [batch, {len(labels)}]",
                got=str(list(shapes.get(_OUTPUT, ()))),
            )

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images."""
        return request.image is not None or request.images is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the images of one request become one batch."""
        field, images = images_of(request, self.name)
        top_k = check_parameters(request, _KNOWN).get("top_k", _TOP_K)
        return Prepared(self._encoder.encode(images, field), (_OUTPUT,), (field == "image", top_k))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Rank the labels of each image by ``logits``, shape (images, labels)."""
        single, top_k = prepared.context
        answers = [self._ranking(logits, top_k) for logits in require_finite(_OUTPUT, computed[_OUTPUT])]
        return answers[0] if single else answers

    def _ranking(self, logits: NDArray[Any], top_k: int) -> list[dict[str, Any]]:
        scores = self._scores(logits)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self._labels[number], "score": float(scores[number])} for number in best]
