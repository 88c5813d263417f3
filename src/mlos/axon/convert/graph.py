"""A repository's own ONNX graph: which tasks it can be asked, and by which facts.

The configuration's architecture decides the kind of model, as for a conversion; the names of the graph's
inputs and outputs decide what can be done with it. The facts are those that the family of that kind packages,
read from the same files; only the model is not loaded. Names are those of the optimum exporter: ``logits``,
``last_hidden_state`` or ``token_embeddings``, ``sentence_embedding``, ``pooler_output``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import transformers
from numpy.typing import NDArray

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
from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.family import SAFE, from_repository, load_tokenizer, read_config
from mlos.engines import Engine
from mlos.errors import RefusedError
from mlos.model import Artifact, TensorSpec
from mlos.tasks import audio, images
from mlos.tasks.image_steps import ImageSteps

_LOGITS = "logits"
_STATES = ("last_hidden_state", "token_embeddings")
"""What exporters call the hidden states of a text's tokens."""
_WHOLE = "sentence_embedding"
"""What they call the vector of a text, where the graph pools itself."""
_TOKENS, _ATTENDED = "input_ids", "attention_mask"
_LENGTHS = {_TOKENS: (8, 12), images.INPUT: (96, 128), audio.INPUT: (16_000, 24_000)}
"""Of the input that tells the kind of a model: lengths of its free axes in two trials."""


@dataclass(frozen=True)
class Fit:
    """By each task that a graph can be asked, in order, its facts; and the tokenizer that they speak of.

    ``notes`` are for a person.
    """

    architecture: str | None
    facts: Mapping[str, dict[str, Any]]
    tokenizer: transformers.PreTrainedTokenizerFast | None = None
    notes: tuple[str, ...] = ()


Facts: TypeAlias = Callable[[Path, str | None, Artifact], Fit]


def fit(source: Path, artifact: Artifact) -> Fit:
    """What the graph ``artifact`` of the repository in ``source`` can be asked.

    Raises:
        RefusedError: if its architecture, its inputs, its outputs or the repository's files leave no task.
    """
    architecture = next(iter(read_config(source).get("architectures") or ()), None)
    for covers, facts in _KINDS:
        if covers(architecture, source):
            return facts(source, architecture, artifact)
    raise RefusedError(
        f"what a graph of a {architecture} answers is not known here", field="architectures", got=architecture
    )


def is_zero_shot(source: Path) -> bool:
    """Whether the repository is one of a model that compares images with texts."""
    architecture = next(iter(read_config(source).get("architectures") or ()), None)
    return image_text.covers(architecture, source)


def narrowed(engine: Engine, artifact: Artifact, fitted: Fit) -> Artifact:
    """``artifact`` with the length of each free axis of its outputs that two trials of other shapes leave be.

    Exporters leave axes free that never change, such as that of a classifier's labels.

    Raises:
        RefusedError: if the graph has inputs that no trial fills.
        MlosError: if it cannot be run.
    """
    first, second = (engine.run(inputs) for inputs in _trials(artifact, fitted))

    def known(spec: TensorSpec) -> TensorSpec:
        lengths = zip(spec.shape, first[spec.name].shape, second[spec.name].shape, strict=True)
        shape = tuple(one if isinstance(axis, str) and one == two else axis for axis, one, two in lengths)
        return spec.model_copy(update={"shape": shape})

    return artifact.model_copy(update={"outputs": tuple(map(known, artifact.outputs))})


def _trials(artifact: Artifact, fitted: Fit) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs of one row, and of two longer ones.

    Tokens and masks are ones: a number that every vocabulary has; anything else is zero.
    """
    main = next((name for name in _LENGTHS if any(spec.name == name for spec in artifact.inputs)), None)
    if main is None:
        raise _missing(artifact, " or ".join(_LENGTHS))
    steps = next(iter(fitted.facts.values())).get("steps") if main == images.INPUT else None
    size = ImageSteps.model_validate(steps).size if steps is not None else None
    for rows, length in zip((1, 2), _LENGTHS[main], strict=True):
        inputs = {}
        for spec in artifact.inputs:
            lengths = [axis if isinstance(axis, int) else length for axis in spec.shape]
            lengths[:1] = [rows] if spec.shape and isinstance(spec.shape[0], str) else lengths[:1]
            if spec.name == images.INPUT and len(lengths) == 4:
                lengths[1:] = [3, *(size or (length, length))]
            ones = spec.name in (_TOKENS, _ATTENDED, images.MASK)
            inputs[spec.name] = np.full(lengths, int(ones), dtype=spec.numpy_dtype)
        yield inputs


def _text_encoder(source: Path, architecture: str | None, artifact: Artifact) -> Fit:
    given = _outputs(artifact)
    recipe, declared = EmbeddingRecipe.read(source), EmbeddingRecipe.is_declared(source)
    tokenizer = _tokenizer(source, artifact)
    known = text_encoder.facts(tokenizer, _config(source), recipe)
    facts: dict[str, dict[str, Any]] = {}
    notes: tuple[str, ...] = ()
    if _LOGITS in given and text_encoder.is_masked(architecture) and tokenizer.mask_token is not None:
        facts["fill-mask"] = known["fill-mask"]
    states = next((name for name in _STATES if name in given), None)
    if _WHOLE in given and not (declared and states):
        facts["embeddings"] = known["embeddings"] | {"output": _WHOLE, "pooling": "model"}
    elif states is not None:
        facts["embeddings"] = known["embeddings"] | {"output": states}
        if not declared:
            notes = ("the repository does not say how it pools: an embedding is the mean of its tokens'",)
    if states is not None:
        facts["token-embeddings"] = known["token-embeddings"] | {"output": states}
    if not facts:
        raise _gives_no(artifact, f"{_LOGITS} of a masked language model, {', '.join(_STATES)} or {_WHOLE}")
    return Fit(architecture, facts, tokenizer, notes)


def _text_classifier(source: Path, architecture: str | None, artifact: Artifact) -> Fit:
    task = text_classifier.task_of(architecture)
    assert task is not None  # covers saw to it
    tokenizer = _tokenizer(source, artifact)
    _require(artifact, _LOGITS)
    return Fit(architecture, {task: text_classifier.facts(task, tokenizer, _config(source))}, tokenizer)


def _speech(source: Path, architecture: str | None, artifact: Artifact) -> Fit:
    extractor, tokenizer = speech.load_processors(source)
    task = speech.EMBEDDINGS if tokenizer is None else speech.SPEECH
    _require(artifact, _STATES[0] if tokenizer is None else _LOGITS)
    return Fit(architecture, {task: speech.facts(extractor, tokenizer, _config(source))})


def _image(task: str, facts: Callable[[ImageSteps, Any], dict[str, Any]], *outputs: str) -> Facts:
    """How graphs of one kind of model of images are fitted."""

    def fitted(source: Path, architecture: str | None, artifact: Artifact) -> Fit:
        for output in outputs:
            _require(artifact, output)
        return Fit(architecture, {task: facts(vision.load_steps(source), _config(source))})

    return fitted


def _unserved(source: Path, architecture: str | None, artifact: Artifact) -> Fit:
    raise RefusedError(
        f"a {architecture} is served from its SafeTensors, or from GGUF, and not from its own ONNX graph",
        field="architectures",
        got=architecture,
    )


_KINDS: tuple[tuple[Callable[[str | None, Path], bool], Facts], ...] = (
    (image_text.covers, _unserved),
    (speech.covers, _speech),
    (image_encoder.covers, _image(image_encoder.TASK, image_encoder.facts, image_encoder.OUTPUT)),
    (seq2seq.covers, _unserved),
    (text_encoder.covers, _text_encoder),
    (text_classifier.covers, _text_classifier),
    (vision.covers, _image(vision.TASK, vision.facts, _LOGITS)),
    (object_detection.covers, _image(object_detection.TASK, object_detection.facts, _LOGITS, "pred_boxes")),
    (segmentation.covers, _image(segmentation.TASK, segmentation.facts, _LOGITS)),
    (causal_lm.covers, _unserved),
)
"""As the families are told apart (:mod:`mlos.axon.convert.families`)."""


def _tokenizer(source: Path, artifact: Artifact) -> transformers.PreTrainedTokenizerFast:
    """The repository's tokenizer, for a graph that takes texts of any number and length."""
    for spec in artifact.inputs:
        if any(isinstance(axis, int) for axis in spec.shape):
            raise RefusedError(
                f"the graph takes {spec.name} of fixed axes, and texts have different lengths",
                field=spec.name,
                expected="free axes",
                got=str(list(spec.shape)),
            )
    if not {_TOKENS, _ATTENDED} <= {spec.name for spec in artifact.inputs}:
        raise _missing(artifact, f"{_TOKENS} and {_ATTENDED}")
    return load_tokenizer(source)


def _config(source: Path) -> Any:
    return from_repository(lambda: transformers.AutoConfig.from_pretrained(source, **SAFE))


def _outputs(artifact: Artifact) -> set[str]:
    return {spec.name for spec in artifact.outputs}


def _require(artifact: Artifact, output: str) -> None:
    if output not in _outputs(artifact):
        raise _gives_no(artifact, output)


def _gives_no(artifact: Artifact, wanted: str) -> RefusedError:
    return RefusedError(
        f"the graph gives no {wanted}", field="outputs", expected=wanted, got=", ".join(_outputs(artifact))
    )


def _missing(artifact: Artifact, wanted: str) -> RefusedError:
    got = ", ".join(spec.name for spec in artifact.inputs)
    return RefusedError(f"the graph does not take {wanted}", field="inputs", expected=wanted, got=got)
