"""What a conversion does: build a tiny BERT with transformers, save it, export it with torch, run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlos.host.child import Emit, serve


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    import numpy as np
    import onnxruntime  # type: ignore[import-untyped] # it ships no annotations
    import torch
    import transformers

    folder = Path(request["folder"])
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    model = transformers.BertModel.from_pretrained(
        folder, add_pooling_layer=False, local_files_only=True, attn_implementation="eager"
    )
    program = torch.onnx.export(
        model,
        (torch.ones(2, 8, dtype=torch.long),),
        dynamo=True,
        input_names=["input_ids"],
        dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}},
    )
    assert program is not None
    program.save(folder / "model.onnx", external_data=True)
    tokens = np.ones((3, 5), np.int64)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)).last_hidden_state.numpy()
    answer = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"input_ids": tokens})[0]
    return {"error": float(np.abs(answer - expected).max()), "spread": float(expected.std())}


if __name__ == "__main__":
    serve(main)
