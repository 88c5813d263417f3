"""A tiny seeded BERT in the framework, and the same model as a package: tokenizer, configuration, manifest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mlos.model import Artifact, Manifest, Tensors, TensorSpec

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the cat sat on a mat . , ! ? ' it isn don t ##s ##t ##ing walk dog runs in "
    "rain and sun s ve re 7 é 你 好"
)
WORDS = VOCABULARY.split()


@dataclass(frozen=True)
class Package:
    """The framework's model and tokenizer, and what the tasks are given of them."""

    folder: Path
    manifest: Manifest
    model: Any
    tokenizer: Any

    def with_options(self, task: str, **options: Any) -> Manifest:
        """The manifest with other options for one task; None takes an option away."""
        changed = {**self.manifest.preprocessing[task], **options}
        kept = {name: value for name, value in changed.items() if value is not None}
        return self.manifest.model_copy(update={"preprocessing": {**self.manifest.preprocessing, task: kept}})

    @torch.no_grad()
    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """What an exact engine would answer."""
        given = {name: torch.from_numpy(np.asarray(tensor)) for name, tensor in inputs.items()}
        answer = self.model(**given, output_hidden_states=True)
        return {"logits": answer.logits.numpy(), "last_hidden_state": answer.hidden_states[-1].numpy()}


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(WORDS[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    folder = tmp_path_factory.mktemp("package")
    tokenizer = word_pieces()
    # As repositories carry them: settings that the framework drops.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9, pad_id=1, pad_token="[UNK]")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.6,
    )
    torch.manual_seed(0)
    model: Any = transformers.BertForMaskedLM(config)
    model.eval()
    free = ("batch", "sequence")
    artifact = Artifact(
        format="onnx",
        precision="fp32",
        path="model.onnx",
        inputs=tuple(
            TensorSpec(name=name, dtype="INT64", shape=free)
            for name in ("input_ids", "token_type_ids", "attention_mask")
        ),
        outputs=(
            TensorSpec(name="logits", dtype="FP32", shape=(*free, len(WORDS))),
            TensorSpec(name="last_hidden_state", dtype="FP32", shape=(*free, 16)),
        ),
    )
    manifest = Manifest(
        name="tiny",
        reference="seeded/tiny/bert@0",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=("fill-mask", "embeddings"),
        artifact=artifact,
        preprocessing={
            "fill-mask": {"max_length": 16, "mask_token": "[MASK]"},
            "embeddings": {"max_length": 8, "pooling": "mean", "normalize": True},
        },
        files=(),
    )
    framework: Any = transformers  # whose tokenizers are not annotated
    theirs = framework.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=16,
    )
    return Package(folder, manifest, model, theirs)
