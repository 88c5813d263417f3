"""An encoder-decoder small enough to make within seconds: T5's architecture, seeded, beside the framework's."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.small import Small

from mlos.engines import EncoderDecoder, open_model
from mlos.model import Artifact, Manifest
from mlos.parity import GoldenRecord


@dataclass(frozen=True)
class TinyT5:
    """The framework's model, and the folder of what was made of it, which is not to be written to."""

    folder: Path
    artifact: Artifact
    manifest: Manifest
    golden: GoldenRecord
    model: Any
    tokenizer: Any

    def opened(self) -> EncoderDecoder:
        """Its engine, with one thread."""
        engine = open_model(self.folder, self.artifact, 1)
        assert isinstance(engine, EncoderDecoder)
        return engine


def tiny_t5(small: Small) -> TinyT5:
    """The small variant, and its framework's model loaded anew."""
    from mlos.axon.convert.seq2seq import Seq2Seq

    folder, made = small.converted("t5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the framework, about its own future
        family = Seq2Seq.load(small.repository("t5"))
    manifest = Manifest(
        name="t5",
        reference="seeded/tiny/t5",
        commit="0",
        weights="seeded",
        source_format="safetensors",
        tasks=made.tasks,
        artifact=made.artifact,
        preprocessing=made.preprocessing,
        files=(),
    )
    golden = GoldenRecord.load(folder / "golden")
    return TinyT5(folder, made.artifact, manifest, golden, family.model, family.tokenizer)
