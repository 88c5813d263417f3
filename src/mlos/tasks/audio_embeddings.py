"""Embeddings of sounds: a sound to one vector, the mean of its frames' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.audio import AudioEncoder, audios_of
from mlos.tasks.prepared import Limits, Prepared, check_parameters, require_finite
from mlos.tasks.task import SinglePass

_OUTPUT = "last_hidden_state"


class AudioEmbeddings(SinglePass):
    """The mean over the frames of each sound; frames of padding are left out.

    The framework has no pipeline for it: its classifiers of sounds pool so, by the same count of frames. It
    reads what :class:`~mlos.tasks.audio.AudioEncoder` reads. A sound is answered with
    ``{"embedding": [...], "dimensions": n}``, several with a list of those.
    """

    name: ClassVar[str] = "audio-embeddings"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = AudioEncoder(manifest, self.name, limits)
        if all(spec.name != _OUTPUT for spec in manifest.artifact.outputs):
            raise RefusedError(f"the model gives no {_OUTPUT} to make embeddings of", field=_OUTPUT)

    def accepts(self, request: InferenceRequest) -> bool:
        """Every sound has an embedding."""
        return request.audio is not None or request.audios is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the sounds of one request become one padded batch."""
        field, sounds = audios_of(request, self.name)
        check_parameters(request, {})
        tensors, frames = self._encoder.encode(sounds, field)
        return Prepared(tensors, (_OUTPUT,), (field == "audio", frames))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Average (sounds, frames, dimensions) over the frames of each sound."""
        single, frames = prepared.context
        hidden = require_finite(_OUTPUT, computed[_OUTPUT])
        rows = [
            row[:count].mean(axis=0, dtype=np.float64).astype(np.float32).tolist()
            for row, count in zip(hidden, frames, strict=True)
        ]
        results = [{"embedding": row, "dimensions": len(row)} for row in rows]
        return results[0] if single else results
