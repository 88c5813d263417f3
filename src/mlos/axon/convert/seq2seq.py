"""Encoder-decoders of text: two ONNX graphs, as :mod:`mlos.engines.encoder_decoder` runs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.export import Axes, Exported, Exporter
from mlos.axon.convert.family import (
    Family,
    Made,
    check_known,
    choose_tasks,
    load_model,
    load_tokenizer,
    most_tokens,
    read_config,
    save_tokenizer,
)
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit
from mlos.model import Artifact, InferenceRequest, TensorSpec
from mlos.parity import Case

TASK = "text2text-generation"
_GENERATION = (
    *("num_beams", "length_penalty", "early_stopping", "repetition_penalty", "no_repeat_ngram_size"),
    *("min_length", "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)
"""What a repository may say of its generation, by the framework's names, and the task does the same."""
_UNKNOWN_RULES: dict[str, Any] = {
    **dict.fromkeys(("encoder_no_repeat_ngram_size", "diversity_penalty"), 0),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale", "num_beam_groups"), 1),
    **dict.fromkeys(("renormalize_logits", "remove_invalid_values", "token_healing"), False),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "sequence_bias")),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "penalty_alpha")),
    **dict.fromkeys(("constraints", "force_words_ids", "stop_strings", "max_time")),
}
"""Rules of generation that our search does not know, each with the value that means nothing."""
_BATCH, _SOURCE, _TARGET, _PAST = 2, 7, 3, 5
"""Lengths of the exporter's example, all different, none of them 1."""


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of an encoder-decoder that reads and writes text.

    BART's names the model without its head, which is the embeddings again. What reads sounds or has no encoder
    is none, nor is an encoder alone that a repository of sentence-transformers holds.
    """
    config = read_config(source)
    kind = str(config.get("model_type"))
    headed = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if headed is None or architecture not in (headed, MODEL_MAPPING_NAMES.get(kind)):
        return False
    if kind in MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES and architecture != headed:
        return False
    said = config.get("is_encoder_decoder")
    both = CONFIG_MAPPING[kind]().is_encoder_decoder if said is None else said
    return bool(both) and not EmbeddingRecipe.is_declared(source)


class Seq2Seq(Family):
    """An encoder-decoder and its tokenizer."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
        tasks: Iterable[str] | None,
    ) -> None:
        self.model, self.tokenizer, self._source = model, tokenizer, source
        self.tasks = choose_tasks(type(model).__name__, [TASK], tasks)
        self._start, self._ends = _markers(model)
        self._generation = _generation(model)
        self._max_length = most_tokens(tokenizer, model.config)

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if weights or tokenizer are missing, it does not say how its answers begin and end, or
                it cannot do one of ``tasks``.
        """
        return cls(
            load_model(transformers.AutoModelForSeq2SeqLM, source), load_tokenizer(source), source, tasks
        )

    def write(self, output: Path, export: Exporter, emit: Emit) -> Made:
        """Both graphs, the tokenizer and the configuration."""
        with torch.no_grad():
            encoded = _Encoding(self.model, self._start)(*_source_example(self.model))
        layers = len(encoded) // 2
        cross = [f"cross.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]
        past, present = ([name.replace("cross", kind) for name in cross] for kind in ("past", "present"))
        axes: Axes = {
            "input_ids": {0: "batch", 1: "source"},
            "attention_mask": {0: "batch", 1: "source"},
            "decoder_input_ids": {0: "batch", 1: "target"},
            "logits": {0: "batch", 1: "target"},
            **{name: {0: "batch", 2: "source"} for name in cross},
            **{name: {0: "batch", 2: "past"} for name in past},
            **{name: {0: "batch", 2: "total"} for name in present},
        }
        ids, mask = _source_example(self.model)
        encoder = export(
            _Encoding(self.model, self._start),
            {"input_ids": ids, "attention_mask": mask},
            cross,
            axes,
            output,
            "encoder",
        )
        shapes = [(tensor.shape[0], tensor.shape[1], _PAST, tensor.shape[3]) for tensor in encoded]
        decoder = export(
            _Decoding(self.model, layers),
            {
                "decoder_input_ids": torch.ones(_BATCH, _TARGET, dtype=torch.int64),
                "attention_mask": mask,
                **dict(zip(cross, encoded, strict=True)),
                **{name: torch.zeros(shape) for name, shape in zip(past, shapes, strict=True)},
            },
            ["logits", *present],
            axes,
            output,
            "decoder",
        )
        for exported in (encoder, decoder):
            exported.tell(emit)
        save_tokenizer(self.tokenizer, output / "tokenizer.json")
        shutil.copyfile(self._source / "config.json", output / "config.json")
        return Made(
            artifact=_whole(encoder, decoder),
            files=(
                *encoder.files,
                *decoder.files,
                ("tokenizer.json", "tokenizer"),
                ("config.json", "config"),
            ),
            tools=decoder.tools,
        )

    def preprocessing(self) -> dict[str, Any]:
        """What tokenises a text, and how an answer begins and ends."""
        tokenizer = self.tokenizer
        facts = {
            "max_length": self._max_length,
            "pad_token": tokenizer.pad_token,
            "decoder_start": self._start,
            "ends": self._ends,
            "positions": getattr(self.model.config, "max_position_embeddings", None),
            "generation": self._generation,
            "clean_up_tokenization_spaces": bool(tokenizer.clean_up_tokenization_spaces),
        }
        return {TASK: facts}

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's own generation, and its logits along its greedy answer."""
        single = request.text if request.text is not None else request.prompt
        texts = [single] if single is not None else request.texts
        if not texts:
            raise InvalidInputError(f"golden request {name} has no text", field=name, expected="text or texts")
        self.require_task(name, request.task or TASK)
        check_known(name, request, {"max_tokens", *_GENERATION})
        options = dict(request.parameters)
        most = options.pop("max_tokens", None)
        if not isinstance(most, int):
            raise InvalidInputError(
                f"golden request {name} must have the parameter max_tokens",
                field=name,
                expected="max_tokens",
                got=", ".join(request.parameters) or "none",
            )
        encoded = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self._max_length, return_tensors="pt"
        )
        source = {tensor: encoded[tensor] for tensor in ("input_ids", "attention_mask")}
        model: Any = self.model  # whose generate() is typed for other uses
        greedy = model.generate(**source, max_new_tokens=most, do_sample=False, num_beams=1)
        forced = greedy[:, :-1] if greedy.shape[1] > 1 else greedy
        logits = self.model(**source, decoder_input_ids=forced).logits
        answers = model.generate(**source, max_new_tokens=most, do_sample=False, **options)
        results = [
            self._result(tokens.tolist()[1:], int(mask.sum()))
            for tokens, mask in zip(answers, source["attention_mask"], strict=True)
        ]
        return Case(
            name=name,
            request=request,
            task=TASK,
            inputs={tensor: value.numpy() for tensor, value in source.items()}
            | {"decoder_input_ids": forced.numpy()},
            outputs={"logits": logits.numpy()},
            result=results[0] if single is not None else results,
        )

    def _result(self, tokens: list[int], prompt: int) -> dict[str, Any]:
        ended = next((at for at, token in enumerate(tokens) if token in self._ends), None)
        written = tokens if ended is None else tokens[: ended + 1]
        return {
            "text": self.tokenizer.decode(written, skip_special_tokens=True),
            "finish_reason": "length" if ended is None else "stop",
            "usage": {"prompt_tokens": prompt, "completion_tokens": len(written)},
        }


class _Encoding(torch.nn.Module):
    """The encoder, and what the decoder's layers make of it: the keys and values they attend to.

    The framework's own decoder makes them, in a step whose answer nobody takes; what that needs beside them,
    the exporters leave out.
    """

    def __init__(self, model: transformers.PreTrainedModel, start: int) -> None:
        super().__init__()
        self.model, self._start = model, start

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, mask = tensors
        hidden = self.model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.model(
            encoder_outputs=hidden,
            attention_mask=mask,
            decoder_input_ids=torch.full_like(ids[:, :1], self._start),
            past_key_values=cache,
            use_cache=True,
        )
        return _states(cache.cross_attention_cache)


class _Decoding(torch.nn.Module):
    """The decoder's next tokens, from the encoder's keys and values and its own so far."""

    def __init__(self, model: transformers.PreTrainedModel, layers: int) -> None:
        super().__init__()
        self.model, self._layers = model, layers

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ids, mask, *states = tensors
        cross, past = DynamicCache(), DynamicCache()
        for layer in range(self._layers):
            cross.update(states[2 * layer], states[2 * layer + 1], layer)
        for layer in range(self._layers):
            at = 2 * (self._layers + layer)
            past.update(states[at], states[at + 1], layer)
        cache = EncoderDecoderCache(past, cross)
        cache.is_updated = dict.fromkeys(range(self._layers), True)
        # Only its shape is looked at: the layers have their keys and values.
        hidden = torch.zeros(*mask.shape, self.model.config.hidden_size, dtype=states[0].dtype)
        answer = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return (answer.logits, *_states(cache.self_attention_cache))


def _states(cache: Cache) -> tuple[torch.Tensor, ...]:
    """Keys and values of each layer in turn."""
    tensors: list[torch.Tensor] = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        tensors += (layer.keys, layer.values)
    return tuple(tensors)


def _source_example(model: transformers.PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, one of them padded."""
    ids = torch.randint(3, 100, (_BATCH, _SOURCE), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(_BATCH, _SOURCE, dtype=torch.int64)
    mask[1, -2:] = 0
    return ids, mask


def _whole(encoder: Exported, decoder: Exported) -> Artifact:
    """The two graphs as one model."""
    taken = {spec.name: spec for spec in (*encoder.artifact.inputs, *decoder.artifact.inputs)}
    logits = next(spec for spec in decoder.artifact.outputs if spec.name == "logits")
    inputs: tuple[TensorSpec, ...] = (*encoder.artifact.inputs, taken["decoder_input_ids"])
    return Artifact(
        format=decoder.artifact.format,
        precision="fp32",
        inputs=inputs,
        outputs=(logits,),
        parts={"encoder": encoder.artifact, "decoder": decoder.artifact},
    )


def _markers(model: transformers.PreTrainedModel) -> tuple[int, list[int]]:
    """The token that an answer begins with, and those that end it.

    Raises:
        RefusedError: if the repository does not say.
    """
    settings = model.generation_config
    start, end = settings.decoder_start_token_id, settings.eos_token_id
    ends = [end] if isinstance(end, int) else list(end or ())
    if start is None or not ends:
        raise RefusedError(
            "the repository does not say how an answer begins and ends",
            field="decoder_start_token_id, eos_token_id",
        )
    return int(start), ends


def _generation(model: transformers.PreTrainedModel) -> dict[str, Any]:
    """What the repository says of its generation and is no matter of course.

    Raises:
        RefusedError: if that is something that our search does not know.
    """
    settings = model.generation_config
    for name, idle in _UNKNOWN_RULES.items():
        if (value := getattr(settings, name, None)) not in (None, idle):
            raise RefusedError(
                f"the repository generates with {name} = {value!r}, which is not done here yet",
                field=name,
                expected=repr(idle),
                got=repr(value),
            )
    said = {name: value for name in _GENERATION if (value := getattr(settings, name, None)) is not None}
    forced = said.get("forced_eos_token_id")
    if isinstance(forced, int):
        said["forced_eos_token_id"] = [forced]
    most = settings.max_new_tokens or (settings.max_length or 0) - 1  # which counts the token it begins with
    if most > 0:
        said["max_tokens"] = most
    return said
