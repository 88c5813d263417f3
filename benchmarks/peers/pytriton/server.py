"""PyTriton: NVIDIA's Triton Inference Server, with ONNX Runtime in its Python process."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from model_file import NUMPY, SETTINGS, ModelFile
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL = ModelFile()


@batch
def infer(**tensors: Any) -> dict[str, Any]:
    """Tensors; Triton has put those of several requests together where batching is on."""
    return MODEL.run(tensors)


@batch
def embed(text: Any) -> dict[str, Any]:
    """Texts to their embeddings."""
    return {"embedding": MODEL.embed([one[0].decode() for one in text])}


def _tensor(told: dict[str, Any]) -> Tensor:
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in told["shape"][1:])
    return Tensor(name=told["name"], dtype=NUMPY[told["dtype"]], shape=shape)


if __name__ == "__main__":
    port, other = sys.argv[1:]
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(port),
        grpc_address="127.0.0.1",
        grpc_port=int(other),
        allow_metrics=False,
        allow_sagemaker=False,
        allow_vertex_ai=False,
    )
    batching = {"batching": True, "max_batch_size": 1}
    if SETTINGS["batch"]:
        batching = {
            "batching": True,
            "max_batch_size": 8,
            "batcher": DynamicBatcher(max_queue_delay_microseconds=2000),
        }
    with Triton(config=config) as triton:
        if MODEL.tokenizer is not None:
            triton.bind(
                model_name="text",
                infer_func=embed,
                inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
                outputs=[Tensor(name="embedding", dtype=np.float32, shape=(-1,))],
                config=ModelConfig(**batching),
            )
        triton.bind(  # last, for its readiness is waited for
            model_name="model",
            infer_func=infer,
            inputs=[_tensor(told) for told in SETTINGS["inputs"]],
            outputs=[_tensor(told) for told in SETTINGS["declared"]],
            config=ModelConfig(**batching),
        )
        triton.serve()
