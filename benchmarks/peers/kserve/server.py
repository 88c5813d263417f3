"""KServe's Python server: a model around ONNX Runtime, over its protocol V2."""

from __future__ import annotations

import asyncio
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from model_file import V2, ModelFile

_LISTENED = uvicorn.Config.__init__


def _on_loopback(self: uvicorn.Config, *arguments: Any, **named: Any) -> None:
    """KServe binds all interfaces and has no setting for it; nobody else is to reach it."""
    _LISTENED(self, *arguments, **{**named, "host": "127.0.0.1"})


class OnnxRuntime(Model):
    """Tensors, or a text to its embedding; computed in two threads, the event loop stays free."""

    def load(self) -> bool:
        """Open the file."""
        self._file = ModelFile()
        self._pool = ThreadPoolExecutor(2)
        self.ready = True
        return True

    async def predict(self, payload: InferRequest, *rest: Any, **named: Any) -> InferResponse:
        """One request."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._answer, payload)

    def _answer(self, payload: InferRequest) -> InferResponse:
        if payload.inputs[0].datatype == "BYTES":
            texts = [text.decode() if isinstance(text, bytes) else text for text in payload.inputs[0].data]
            arrays = {"embedding": self._file.embed(texts)}
        else:
            arrays = self._file.run({one.name: one.as_numpy() for one in payload.inputs})
        outputs = []
        for name, array in arrays.items():
            output = InferOutput(name=name, shape=list(array.shape), datatype=V2[array.dtype.name])
            output.set_data_from_numpy(array, binary_data=payload.use_binary_outputs)
            outputs.append(output)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    uvicorn.Config.__init__ = _on_loopback  # type: ignore[method-assign]
    model = OnnxRuntime("model")
    model.load()
    server = ModelServer(http_port=int(sys.argv[1]), enable_grpc=False, workers=1, enable_latency_logging=False)
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    server.start([model])
