"""Models of sound: recognisers of speech that name a token for each frame, and encoders of sounds."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.audio_utils import load_audio
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from mlos.axon.convert.export import Exporter, Flat
from mlos.axon.convert.family import (
    SAFE,
    Family,
    Made,
    check_known,
    choose_tasks,
    from_repository,
    load_model,
    read_config,
)
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit
from mlos.model import InferenceRequest
from mlos.parity import Case
from mlos.tasks.audio import INPUT, MASK

SPEECH, EMBEDDINGS = "automatic-speech-recognition", "audio-embeddings"
_RECOGNISERS = set(MODEL_FOR_CTC_MAPPING_NAMES.values())
_ENCODERS = {f"{kind}{head}" for kind in ("Wav2Vec2", "Hubert") for head in ("Model", "ForPreTraining")}
_CONFIGS = ("config.json", "preprocessor_config.json")


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of a recogniser of speech or an encoder of sounds."""
    return architecture in _RECOGNISERS | _ENCODERS


def load_processors(source: Path) -> tuple[Any, Any]:
    """The repository's feature extractor and, of a recogniser, its tokenizer.

    Raises:
        RefusedError: if one of them is missing, or of a kind that cannot be packaged.
    """
    framework: Any = transformers
    extractor = from_repository(lambda: framework.AutoFeatureExtractor.from_pretrained(source, **SAFE))
    if type(extractor) is not transformers.Wav2Vec2FeatureExtractor:
        raise RefusedError(
            f"a model with a {type(extractor).__name__} cannot be packaged yet",
            field="feature_extractor_type",
            expected="Wav2Vec2FeatureExtractor",
            got=type(extractor).__name__,
        )
    config = read_config(source)
    if extractor.feature_size != 1 or extractor.padding_side != "right" or config.get("add_adapter", False):
        raise RefusedError(
            "sounds of several features, padded at their beginning or through an adapter cannot be packaged "
            "yet",
            field="preprocessor_config.json",
        )
    if not is_recogniser(next(iter(config["architectures"]))):
        return extractor, None
    tokenizer = from_repository(lambda: framework.AutoTokenizer.from_pretrained(source, **SAFE))
    if type(tokenizer) is not transformers.Wav2Vec2CTCTokenizer or tokenizer.clean_up_tokenization_spaces:
        raise RefusedError(
            "the tokenizer writes text in a way that cannot be packaged yet",
            field="tokenizer_class",
            expected="Wav2Vec2CTCTokenizer",
            got=type(tokenizer).__name__,
        )
    return extractor, tokenizer


def is_recogniser(architecture: str | None) -> bool:
    """Whether a model recognises speech."""
    return architecture in _RECOGNISERS


def facts(extractor: Any, tokenizer: Any, config: Any) -> dict[str, Any]:
    """What makes samples of a sound file and, where there is a tokenizer, text of logits."""
    found: dict[str, Any] = {
        "steps": {
            "rate": extractor.sampling_rate,
            "normalize": bool(extractor.do_normalize),
            "padding": float(extractor.padding_value),
            "mask": bool(extractor.return_attention_mask),
            "kernels": list(config.conv_kernel),
            "strides": list(config.conv_stride),
        }
    }
    if tokenizer is None:
        return found
    return found | {
        "tokens": tokenizer.convert_ids_to_tokens(list(range(config.vocab_size))),
        "blank": tokenizer.pad_token,
        "delimiter": tokenizer.word_delimiter_token,
        "space": tokenizer.replace_word_delimiter_char,
        "lower": bool(tokenizer.do_lower_case),
        "ratio": config.inputs_to_logits_ratio,
    }


class Speech(Family):
    """A model of samples, its feature extractor and, of a recogniser, its tokenizer."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        extractor: Any,
        tokenizer: Any,
        source: Path,
        tasks: Iterable[str] | None,
    ) -> None:
        self.model, self._extractor, self._source = model, extractor, source
        self.tasks = choose_tasks(type(model).__name__, [EMBEDDINGS if tokenizer is None else SPEECH], tasks)
        self._tokenizer = tokenizer
        self._output = "last_hidden_state" if tokenizer is None else "logits"
        self._names = (INPUT, MASK) if extractor.return_attention_mask else (INPUT,)
        if tokenizer is not None:
            pipeline: Any = transformers.AutomaticSpeechRecognitionPipeline
            self._pipeline = pipeline(
                model=model, feature_extractor=extractor, tokenizer=tokenizer, device="cpu"
            )

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if weights, feature extractor or tokenizer are missing or of a kind that cannot be
                packaged, or the model cannot do one of ``tasks``.
        """
        recogniser = is_recogniser(next(iter(read_config(source)["architectures"])))
        framework: Any = transformers
        model = load_model(framework.AutoModelForCTC if recogniser else framework.AutoModel, source)
        if model.main_input_name != INPUT:
            raise RefusedError(
                f"a {type(model).__name__} takes {model.main_input_name}", field=INPUT, expected=INPUT
            )
        return cls(model, *load_processors(source), source, tasks)

    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """The model as one file, and the configuration of it and of its feature extractor."""
        examples = {INPUT: torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0))}
        if MASK in self._names:
            examples[MASK] = torch.ones(2, 16_000, dtype=torch.int32)
            examples[MASK][1, 12_000:] = 0
        axes = {name: {0: "batch", 1: "samples"} for name in self._names}
        exported = export(
            Flat(self.model, self._names, (self._output,)),
            examples,
            (self._output,),
            axes | {self._output: {0: "batch", 1: "frames"}},
            output,
        )
        exported.tell(emit)
        for name in _CONFIGS:
            shutil.copyfile(self._source / name, output / name)
        return Made(
            artifact=exported.artifact,
            files=(*exported.files, *((name, "config") for name in _CONFIGS)),
            tools=exported.tools,
        )

    def preprocessing(self) -> dict[str, Any]:
        """What makes samples of a sound file, and text of logits."""
        return {self.tasks[0]: facts(self._extractor, self._tokenizer, self.model.config)}

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's answer: of one sound its pipeline's, of several its processor's and its tokenizer's.

        As in the pipeline each sound is normalised over its own length, whatever it is padded with.
        """
        files = [request.audio] if request.audio is not None else request.audios
        if not files:
            raise InvalidInputError(
                f"golden request {name} has no sound", field=name, expected="audio or audios"
            )
        task = request.task or self.tasks[0]
        self.require_task(name, task)
        check_known(name, request, {"return_timestamps"} if task == SPEECH else ())
        rate = self._extractor.sampling_rate
        sounds = [load_audio(base64.b64encode(file).decode(), rate, backend="soundfile") for file in files]
        prepared = self._extractor(
            sounds, padding=True, return_attention_mask=True, sampling_rate=rate, return_tensors="pt"
        )
        given = {part: prepared[part] for part in self._names}
        output = getattr(self.model(**given), self._output)
        if request.audio is not None and task == SPEECH:
            result: Any = self._pipeline(sounds[0], **request.parameters)
        else:
            model: Any = self.model
            own = model._get_feature_vector_attention_mask(output.shape[1], prepared[MASK])
            rows = [row[mask] for row, mask in zip(output, own, strict=True)]
            results = [self._result(row, **request.parameters) for row in rows]
            result = results[0] if request.audio is not None else results
        return Case(
            name=name,
            request=request,
            task=task,
            inputs={part: tensor.numpy() for part, tensor in given.items()},
            outputs={self._output: output.numpy()},
            result=_plain(result),
        )

    def _result(self, row: torch.Tensor, **parameters: Any) -> Any:
        """What the framework makes of the frames of one sound."""
        if self._tokenizer is None:
            return {"embedding": row.mean(0).tolist(), "dimensions": row.shape[1]}
        return self._pipeline.postprocess([{"tokens": row.argmax(-1)[None]}], **parameters)


def _plain(value: Any) -> Any:
    """Numbers of numpy as numbers, and pairs as lists."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return float(value) if isinstance(value, float) else value
