"""Image embeddings: an image to one vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.images import ImageEncoder, images_of
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, require_finite
from mlos.tasks.task import SinglePass

_KNOWN: Known = {"normalize": ("true or false", lambda value: isinstance(value, bool))}


class ImageEmbeddings(SinglePass):
    """The model's own vector of an image, as the framework's image-feature-extraction pipeline pools it.

    A model that puts images and texts into one space gives that of its side for images, of length 1.

    It reads from ``manifest.preprocessing["image-embeddings"]``: ``output`` (the tensor that holds the vectors,
    for example ``pooler_output``), and what :class:`~mlos.tasks.images.ImageEncoder` reads. The parameter
    ``normalize`` (default false) scales vectors to length 1. An image is answered with
    ``{"embedding": [...], "dimensions": n}``; several images, with a list of those.
    """

    name: ClassVar[str] = "image-embeddings"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = ImageEncoder(manifest, self.name, limits)
        output = self._encoder.options.get("output")
        given = [spec.name for spec in manifest.artifact.outputs if len(spec.shape) == 2]
        if output not in given:
            raise RefusedError(
                "the package does not say which of the model's outputs are embeddings",
                field=f"preprocessing.{self.name}.output",
                expected=", ".join(given) or "an output of shape [images, dimensions]",
                got=repr(output),
            )
        self._output: str = output

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds images."""
        return request.image is not None or request.images is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the images of one request become one batch."""
        field, images = images_of(request, self.name)
        normalize = check_parameters(request, _KNOWN).get("normalize", False)
        return Prepared(self._encoder.encode(images, field), (self._output,), (field == "image", normalize))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """The vectors, shape (images, dimensions), one by one; a length is taken for at least 1e-12."""
        single, normalize = prepared.context
        vectors = require_finite(self._output, computed[self._output]).astype(np.float64)
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rows = vectors.astype(np.float32).tolist()
        results = [{"embedding": row, "dimensions": len(row)} for row in rows]
        return results[0] if single else results
