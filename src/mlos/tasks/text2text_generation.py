"""Text to text: an encoder-decoder's answer to a text, such as its translation or summary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from mlos.engines import Cohorts, EncoderDecoder, Engine
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.generation import MAX_TOKENS, FinishReason, Generated
from mlos.tasks.prepared import (
    Known,
    Limits,
    Prepared,
    check_parameters,
    is_number,
    is_whole,
    texts_of,
)
from mlos.tasks.rules import Rule, Rules, apply
from mlos.tasks.search import Beams, beam_search, greedy
from mlos.tasks.task import Stream
from mlos.tasks.text import TextEncoder

_MOST_BEAMS, _MOST_SEQUENCES, _MOST_TOKENS = 8, 64, 4096
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
"""Rules that a package says and no request: what they name are numbers of its vocabulary."""
_Told: TypeAlias = Literal["in parts", "whole", "never"]
"""How a text is told to who waits for parts."""


def _known(most: int) -> Known:
    """Parameters of a request to a model that writes at most ``most`` tokens."""
    whole = f"a whole number from 0 to {most}"
    return {
        "max_tokens": (f"a whole number from 1 to {most}", lambda value: is_whole(value, 1, most)),
        "num_beams": (
            f"a whole number from 1 to {_MOST_BEAMS}",
            lambda value: is_whole(value, 1, _MOST_BEAMS),
        ),
        "length_penalty": ("a number from -10 to 10", lambda value: is_number(value, -10, 10)),
        "early_stopping": (
            'true, false or "never"',
            lambda value: isinstance(value, bool) or value == "never",
        ),
        "repetition_penalty": ("a number from 0.01 to 10", lambda value: is_number(value, 0.01, 10)),
        "no_repeat_ngram_size": (whole, lambda value: is_whole(value, 0, most)),
        "min_length": (whole, lambda value: is_whole(value, 0, most)),
        "min_new_tokens": (whole, lambda value: is_whole(value, 0, most)),
    }


@dataclass(frozen=True)
class _Plan:
    single: bool
    max_tokens: int
    beams: Beams
    rules: Rules


@dataclass(frozen=True)
class _Answers:
    """What was written for each text."""

    generated: tuple[Generated, ...]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended, if it is one."""
        return self.generated[0].finish_reason if len(self.generated) == 1 else None

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of all texts, by what they were."""
        return {
            "prompt": sum(each.prompt_tokens for each in self.generated),
            "completion": sum(each.completion_tokens for each in self.generated),
        }


class Text2TextGeneration:
    """The answer to ``text`` (or ``prompt``), or to each of ``texts``, as the framework's ``generate`` has it.

    It reads from ``manifest.preprocessing["text2text-generation"]``: ``decoder_start`` and ``ends`` (the
    tokens that an answer begins and ends with), ``positions`` (how many tokens an answer may have at all, null
    where the model sets no bound), ``generation`` (what holds where a request says nothing: the parameters
    below, and the forced tokens of :class:`~mlos.tasks.rules.Rules`), ``clean_up_tokenization_spaces``, and
    what :class:`~mlos.tasks.text.TextEncoder` reads. Parameters: ``max_tokens`` (256 where the package says
    nothing), ``num_beams`` (1, which is greedy), ``length_penalty`` and ``early_stopping`` (see
    :class:`~mlos.tasks.search.Beams`), and the rules ``repetition_penalty``, ``no_repeat_ngram_size``,
    ``min_length`` and ``min_new_tokens``. One text is answered with ``{"text", "finish_reason", "usage"}``,
    several with a list of those. Greedy answers come in parts; a beam is not decided before its end.

    The greedy answer to one text may be written beside others. Beams and several texts are computed alone.
    """

    name: ClassVar[str] = "text2text-generation"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        parts = manifest.artifact.parts
        if "encoder" not in parts:
            raise RefusedError(
                f"the task {self.name} needs an encoder and a decoder",
                field="artifact.parts",
                expected="encoder, decoder",
                got=", ".join(parts) or "one graph",
            )
        self._encoder = TextEncoder(folder, manifest, self.name, parts["encoder"].inputs)
        self._max_text_bytes = limits.max_text_bytes
        options = self._encoder.options
        start, ends = options.get("decoder_start"), options.get("ends")
        if not isinstance(start, int) or not isinstance(ends, list) or not ends:
            raise RefusedError(
                "the package does not say how an answer begins and ends",
                field=f"preprocessing.{self.name}",
                expected="decoder_start, ends",
                got=", ".join(options),
            )
        self._start, self._ends = start, ends
        most = min(options.get("positions") or _MOST_TOKENS, _MOST_TOKENS)
        self._known = _known(most)
        self._defaults: dict[str, Any] = {"max_tokens": min(MAX_TOKENS, most)} | _checked(
            options.get("generation") or {}, self._known
        )
        self.beside = self._defaults.get("num_beams", 1) == 1

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text has an answer."""
        return any(held is not None for held in (request.text, request.texts, request.prompt))

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes, ("text", "texts", "prompt"))
        given: dict[str, Any] = self._defaults | check_parameters(request, self._known)
        beams = Beams(
            given.get("num_beams", 1), given.get("length_penalty", 1.0), given.get("early_stopping", False)
        )
        if len(texts) * beams.number > _MOST_SEQUENCES:
            raise PayloadTooLargeError(
                f"{len(texts)} texts of {beams.number} beams make {len(texts) * beams.number} sequences",
                field="texts",
                expected=f"at most {_MOST_SEQUENCES} sequences",
                got=str(len(texts) * beams.number),
                hint="send fewer texts at a time, or ask for fewer beams",
            )
        if request.stream and request.texts is not None:
            raise InvalidInputError(
                "several texts are not answered in parts",
                field="stream",
                expected="one text, or stream false",
                got=f"{len(texts)} texts",
            )
        plan = _Plan(request.texts is None, given["max_tokens"], beams, _rules(given))
        return Prepared(self._encoder.encode(texts), (), plan)

    def compute(self, engine: Engine, prepared: Prepared, stream: Stream) -> _Answers:
        """Encode once, then decode step by step."""
        if not isinstance(engine, EncoderDecoder):
            raise RefusedError(
                f"{engine.name} is no encoder-decoder", field="engine", expected="two graphs", got=engine.name
            )
        plan = cast("_Plan", prepared.context)
        decoding = engine.begin(prepared.inputs, copies=plan.beams.number)

        def step(tokens: NDArray[np.int64]) -> NDArray[Any]:
            stream.check()
            return engine.step(decoding, tokens[:, None])[:, -1]

        rules = plan.rules.of(self._ends, plan.max_tokens)
        texts = [self._text(prepared, row, rules) for row in range(len(prepared.inputs["input_ids"]))]
        if plan.beams.number == 1:
            for tokens in greedy(step, self._start, len(texts), self._ends, plan.max_tokens, rules):
                for text, token in zip(texts, tokens.tolist(), strict=True):
                    if not text.ended:
                        text.take(token, stream)
        else:
            rows = beam_search(
                step, decoding.select, self._start, len(texts), self._ends, plan.max_tokens, plan.beams, rules
            )
            for text, row in zip(texts, rows, strict=True):
                text.tokens = row
        return _Answers(tuple(generated for text in texts for generated in text.finish(stream).generated))

    def writer(self, engine: EncoderDecoder, prepared: Prepared) -> _Text | None:
        """See :class:`mlos.tasks.WritingTask`."""
        plan = cast("_Plan", prepared.context)
        if plan.beams.number > 1 or not plan.single:
            return None
        return self._text(prepared, 0, plan.rules.of(self._ends, plan.max_tokens))

    def postprocess(self, prepared: Prepared, computed: _Answers) -> Any:
        """One answer, or one for each text."""
        results = [generated.as_result() for generated in computed.generated]
        return results[0] if prepared.context.single else results

    def _text(self, prepared: Prepared, row: int, rules: Sequence[Rule]) -> _Text:
        plan = cast("_Plan", prepared.context)
        # Cleaning up spaces changes what was said before: such a text is told at its end, as a beam's is.
        whole = self._encoder.options.get("clean_up_tokenization_spaces") or plan.beams.number > 1
        told: _Told = "never" if not plan.single else "whole" if whole else "in parts"
        inputs = {name: tensor[row : row + 1] for name, tensor in prepared.inputs.items()}
        return _Text(self._encoder, inputs, self._start, self._ends, plan.max_tokens, rules, told)


class _Text:
    """The answer to one text under way, in ``tokens``: see :class:`mlos.tasks.Writer`."""

    def __init__(
        self,
        encoder: TextEncoder,
        inputs: Tensors,
        start: int,
        ends: Collection[int],
        most: int,
        rules: Sequence[Rule],
        told: _Told,
    ) -> None:
        self._encoder, self._inputs, self._told = encoder, inputs, told
        self._start, self._ends, self._most, self._rules = start, ends, most, rules
        self._decoder, self._spoken = DecodeStream(skip_special_tokens=True), ""
        self.tokens: list[int] = []

    @property
    def ended(self) -> bool:
        """Whether it has had its last token."""
        return self.tokens != [] and (self.tokens[-1] in self._ends or len(self.tokens) >= self._most)

    def join(self, places: Cohorts) -> int | None:
        """See :class:`mlos.tasks.Writer`."""
        return places.join(self._inputs, self._start, self._following)

    def take(self, token: int, stream: Stream) -> bool:
        """See :class:`mlos.tasks.Writer`."""
        self.tokens.append(token)
        if self._told == "in parts" and (delta := self._decoder.step(self._encoder.tokenizer, token)):
            self._spoken += delta
            stream.emit({"text": delta})
        return self.ended

    def finish(self, stream: Stream) -> _Answers:
        """See :class:`mlos.tasks.Writer`."""
        text = self._encoder.decode(self.tokens, skip_special_tokens=True)
        assert text.startswith(self._spoken), "parts make the text"
        # What never became a whole character is still to be told, or everything.
        if self._told != "never" and (rest := text[len(self._spoken) :]):
            stream.emit({"text": rest})
        reason: FinishReason = "stop" if self.tokens and self.tokens[-1] in self._ends else "length"
        prompt = int(self._inputs["attention_mask"].sum())
        return _Answers((Generated(text, reason, prompt, len(self.tokens)),))

    def _following(self, scores: NDArray[Any]) -> int:
        """The likeliest token by the rules, as :func:`mlos.tasks.search.greedy` has it."""
        written = np.array([[self._start, *self.tokens]], dtype=np.int64)
        return int(apply(self._rules, written, scores[None].astype(np.float32, copy=False)).argmax())


def _rules(given: Mapping[str, Any]) -> Rules:
    return Rules(
        repetition_penalty=float(given.get("repetition_penalty", 1.0)),
        no_repeat_ngram_size=given.get("no_repeat_ngram_size", 0),
        min_length=given.get("min_length", 0),
        min_new_tokens=given.get("min_new_tokens"),
        forced_bos_token_id=given.get("forced_bos_token_id"),
        forced_eos_token_id=tuple(given.get("forced_eos_token_id", ())),
    )


def _checked(facts: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """What a package says of its generation.

    Raises:
        RefusedError: if it says what is not done here.
    """
    for name, value in facts.items():
        expected, holds = known.get(name, (", ".join((*known, *_FORCED)), lambda value: False))
        if name not in _FORCED and not holds(value):
            raise RefusedError(
                f"the package generates with {name} = {value!r:.100}",
                field=f"preprocessing.{Text2TextGeneration.name}.generation.{name}",
                expected=expected,
                got=f"{value!r:.100}",
            )
    return dict(facts)
