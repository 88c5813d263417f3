"""Which family a repository belongs to, told by the architecture that its configuration names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from mlos.axon.convert import (
    causal_lm,
    image_encoder,
    image_text,
    object_detection,
    segmentation,
    seq2seq,
    speech,
    text_classifier,
    text_encoder,
    vision,
)
from mlos.axon.convert.family import Family, read_config
from mlos.errors import RefusedError

Loader: TypeAlias = Callable[[Path, Iterable[str] | None], Family]

_FAMILIES: tuple[tuple[Callable[[str | None, Path], bool], Loader], ...] = (
    (image_text.covers, image_text.ImageText.load),
    (speech.covers, speech.Speech.load),
    (image_encoder.covers, image_encoder.ImageEncoder.load),
    (seq2seq.covers, seq2seq.Seq2Seq.load),
    (text_encoder.covers, text_encoder.TextEncoder.load),
    (text_classifier.covers, text_classifier.TextClassifier.load),
    (vision.covers, vision.Vision.load),
    (object_detection.covers, object_detection.ObjectDetection.load),
    (segmentation.covers, segmentation.Segmentation.load),
    (causal_lm.covers, causal_lm.CausalLM.load),
)


def load(source: Path, tasks: Iterable[str] | None = None) -> Family:
    """Load the repository in ``source`` as what it is, for ``tasks`` or for all that it can do.

    Raises:
        RefusedError: if no family covers it, it brings code, lacks weights, or cannot do one of the tasks.
    """
    architecture = next(iter(read_config(source).get("architectures") or ()), None)
    for covers, loader in _FAMILIES:
        if covers(architecture, source):
            return loader(source, tasks)
    raise RefusedError(
        f"a {architecture} cannot be converted yet",
        field="architectures",
        expected="a masked language model, an encoder or a classifier of texts, an image model, "
        "a sequence-to-sequence model or a causal language model",
        got=str(architecture),
    )
