"""Object detection: what is where in an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.parity.boxes import THRESHOLD
from mlos.tasks.images import ImageEncoder, images_of
from mlos.tasks.labels import OUTPUT, Labels
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, is_number, require_finite
from mlos.tasks.task import SinglePass

_BOXES = "pred_boxes"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KNOWN: Known = {"threshold": ("a number from 0 to 1", lambda value: is_number(value, 0, 1))}


class ObjectDetection(SinglePass):
    """The objects in each image, as the framework's object-detection pipeline answers.

    It reads from ``manifest.preprocessing["object-detection"]``: ``labels`` (their names in the order of the
    model's ``logits``, the last of which stands for no object), and what
    :class:`~mlos.tasks.images.ImageEncoder` reads. The model gives for each of its queries the ``logits`` and
    in ``pred_boxes`` the centre, width and height of a box, as shares of the image's. The parameter
    ``threshold`` (0 to 1, default 0.5) says above which score an object is answered. An image is answered
    with a list of ``{"score", "label", "box"}`` in the queries' order, the box in whole pixels of the upright
    image (it may reach beyond its edges); several images, with a list of such lists.
    """

    name: ClassVar[str] = "object-detection"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = ImageEncoder(manifest, self.name, limits)
        self._labels = Labels(self._encoder.options, manifest, self.name, scores="softmax", beside=1)
        shapes = {spec.name: spec.shape for spec in manifest.artifact.outputs}
        if shapes.get(_BOXES, ())[1:] != (*shapes[OUTPUT][1:-1], 4):
            raise RefusedError(
                "the model gives no box for each of its queries",
                field=_BOXES,
                expected=str([*shapes[OUTPUT][:-1], 4]),
                got=str(list(shapes.get(_BOXES, ()))),
            )

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images."""
        return request.image is not None or request.images is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the images of one request become one batch."""
        field, images = images_of(request, self.name)
        threshold = check_parameters(request, _KNOWN).get("threshold", THRESHOLD)
        tensors, sizes = self._encoder.encode_sized(images, field)
        return Prepared(tensors, (OUTPUT, _BOXES), (field == "image", threshold, sizes))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """The objects of each image from ``logits`` and ``pred_boxes``, both (images, queries, ...)."""
        single, threshold, sizes = prepared.context
        logits, boxes = (require_finite(name, computed[name]) for name in (OUTPUT, _BOXES))
        answers = [self._objects(*each, threshold) for each in zip(logits, boxes, sizes, strict=True)]
        return answers[0] if single else answers

    def _objects(
        self, logits: NDArray[Any], boxes: NDArray[Any], size: tuple[int, int], threshold: float
    ) -> list[dict[str, Any]]:
        scores = np.stack([self._labels.scores(query)[:-1] for query in logits])
        return [
            {
                "score": float(scores[query, label]),
                "label": self._labels.names[label],
                "box": dict(zip(_CORNERS, corners, strict=True)),
            }
            for query, (label, corners) in enumerate(
                zip(scores.argmax(-1).tolist(), _corners(boxes, size), strict=True)
            )
            if scores[query, label] > threshold
        ]


def _corners(boxes: NDArray[Any], size: tuple[int, int]) -> list[list[int]]:
    """Left, top, right and bottom in pixels, cut to whole ones, in single precision as in the framework."""
    centres, halves = boxes[:, :2], np.float32(0.5) * boxes[:, 2:]
    height, width = size
    pixels = np.concatenate([centres - halves, centres + halves], axis=1)
    found: list[list[int]] = (
        (pixels * np.array([width, height] * 2, dtype=np.float32)).astype(np.int32).tolist()
    )
    return found
