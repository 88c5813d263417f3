"""A runtime of MLServer around ONNX Runtime, written for this comparison: MLServer brings none."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec
from mlserver.repository.load import load_model_settings
from mlserver.settings import Settings
from mlserver.types import InferenceRequest, InferenceResponse
from model_file import SETTINGS, ModelFile


class OnnxRuntime(MLModel):
    """Tensors, or a text to its embedding."""

    async def load(self) -> bool:
        """Open the file."""
        self._file = ModelFile()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, or several of equal lengths that MLServer made one."""
        if payload.inputs[0].datatype == "BYTES":
            texts = [text.decode() if isinstance(text, bytes) else text for text in payload.inputs[0].data]
            outputs = {"embedding": self._file.embed(texts)}
        else:
            outputs = self._file.run({one.name: NumpyCodec.decode_input(one) for one in payload.inputs})
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, np.asarray(array)) for name, array in outputs.items()],
        )


async def serve(port: int, grpc_port: int) -> None:
    """Serve until told to stop."""
    batching = {"max_batch_size": 8, "max_batch_time": 0.002} if SETTINGS["batch"] else {}
    model = {"name": "model", "implementation": "server.OnnxRuntime", **batching}
    repository = Path(tempfile.mkdtemp(prefix="repository-"))  # from which a model that was unloaded is loaded
    described = repository / "model-settings.json"
    described.write_text(json.dumps(model))
    settings = Settings(
        host="127.0.0.1",
        http_port=port,
        grpc_port=grpc_port,
        metrics_endpoint=None,
        parallel_workers=1,
        parallel_workers_timeout=5,
        environments_dir=tempfile.mkdtemp(prefix="mlserver-"),
        debug=False,
        model_repository_root=str(repository),
    )
    server = MLServer(settings)
    await server.start([load_model_settings(str(described))])


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
