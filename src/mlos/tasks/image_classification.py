"""Image classification: which of a model's labels fit an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.images import ImageEncoder, images_of
from mlos.tasks.labels import OUTPUT, Labels
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, is_whole, require_finite
from mlos.tasks.task import SinglePass

_MOST = 1000
_TOP_K = 5
_KNOWN: Known = {"top_k": (f"a whole number from 1 to {_MOST}", lambda value: is_whole(value, 1, _MOST))}


class ImageClassification(SinglePass):
    """The best labels for each image, as the framework's image-classification pipeline answers.

    It reads from ``manifest.preprocessing["image-classification"]`` what :class:`~mlos.tasks.labels.Labels` and
    :class:`~mlos.tasks.images.ImageEncoder` read. The parameter ``top_k`` (1 to 1000, default 5) says
    how many; no more than there are labels are answered. An image is answered with a list of
    ``{"label", "score"}``, best first; several images, with a list of such lists.
    """

    name: ClassVar[str] = "image-classification"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = ImageEncoder(manifest, self.name, limits)
        self._labels = Labels(self._encoder.options, manifest, self.name)

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images."""
        return request.image is not None or request.images is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the images of one request become one batch."""
        field, images = images_of(request, self.name)
        top_k = check_parameters(request, _KNOWN).get("top_k", _TOP_K)
        return Prepared(self._encoder.encode(images, field), (OUTPUT,), (field == "image", top_k))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Rank the labels of each image by ``logits``, shape (images, labels)."""
        single, top_k = prepared.context
        logits = require_finite(OUTPUT, computed[OUTPUT])
        answers = [self._labels.ranking(each, top_k) for each in logits]
        return answers[0] if single else answers
