"""Image segmentation: which pixels of an image show what."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.images import ImageEncoder, images_of
from mlos.tasks.label_map import label_map, mask_file
from mlos.tasks.labels import OUTPUT, Labels
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, require_finite
from mlos.tasks.task import SinglePass

_KNOWN: Known = {"subtask": ("semantic", lambda value: value == "semantic")}


class ImageSegmentation(SinglePass):
    """The parts of each image by label, as the framework's image-segmentation pipeline answers.

    It reads from ``manifest.preprocessing["image-segmentation"]``: ``labels`` (their names in the order of the
    model's ``logits``, a map of shape (images, labels, height, width)), and what
    :class:`~mlos.tasks.images.ImageEncoder` reads. Each pixel of the upright image belongs to one part. An
    image is answered with a list of ``{"score", "label", "mask"}`` in the labels' order: the score is null, as
    the map has none for a part, and the mask a PNG file in base64, as large as the image and white where it
    shows the label. Several images are answered with a list of such lists. The parameter ``subtask`` may say
    ``semantic``, which is what is done.
    """

    name: ClassVar[str] = "image-segmentation"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = ImageEncoder(manifest, self.name, limits)
        self._labels = Labels(self._encoder.options, manifest, self.name, scores="none", axis=1)

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images."""
        return request.image is not None or request.images is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the images of one request become one batch."""
        field, images = images_of(request, self.name)
        check_parameters(request, _KNOWN)
        tensors, sizes = self._encoder.encode_sized(images, field)
        return Prepared(tensors, (OUTPUT,), (field == "image", sizes))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Bring each map of ``logits`` to its image's own size and tell the parts."""
        single, sizes = prepared.context
        maps = require_finite(OUTPUT, computed[OUTPUT])
        answers = [self._parts(logits, size) for logits, size in zip(maps, sizes, strict=True)]
        return answers[0] if single else answers

    def _parts(self, logits: NDArray[Any], size: tuple[int, int]) -> list[dict[str, Any]]:
        best = label_map(np.asarray(logits, dtype=np.float32), *size)
        # Counted line by line: numpy would make the numbers of a whole photograph four times as wide.
        shown = np.zeros(len(self._labels.names), dtype=np.intp)
        for line in best:
            shown += np.bincount(line, minlength=len(shown))
        return [
            {"score": None, "label": self._labels.names[number], "mask": mask_file(best == number)}
            for number in np.flatnonzero(shown).tolist()
        ]
