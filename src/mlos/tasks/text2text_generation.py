"""Text to text: an encoder-decoder's answer to a text, such as its translation or summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream

from mlos.engines import EncoderDecoder, Engine
from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest
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
from mlos.tasks.rules import Rule, Rules
from mlos.tasks.search import Beams, beam_search, greedy
from mlos.tasks.task import Stream
from mlos.tasks.text import TextEncoder

_MOST_BEAMS, _MOST_SEQUENCES, _MOST_TOKENS = 8, 64, 4096
_FORCED = ("forced_bos_token_id", "forced_eos_token_id")
"""Rules that a package says and no request: what they name are numbers of its vocabulary."""


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
        texts = len(prepared.inputs["input_ids"])
        decoding = engine.begin(prepared.inputs, copies=plan.beams.number)

        def step(tokens: NDArray[np.int64]) -> NDArray[Any]:
            stream.check()
            return engine.step(decoding, tokens[:, None])[:, -1]

        rules = plan.rules.of(self._ends, plan.max_tokens)
        if plan.beams.number == 1:
            rows = self._greedy(step, texts, plan, rules, stream)
        else:
            rows = beam_search(
                step, decoding.select, self._start, texts, self._ends, plan.max_tokens, plan.beams, rules
            )
        prompts = prepared.inputs["attention_mask"].sum(axis=1).tolist()
        answers = tuple(self._generated(row, prompt) for row, prompt in zip(rows, prompts, strict=True))
        if plan.beams.number > 1 and plan.single:
            stream.emit({"text": answers[0].text})
        return _Answers(answers)

    def postprocess(self, prepared: Prepared, computed: _Answers) -> Any:
        """One answer, or one for each text."""
        results = [generated.as_result() for generated in computed.generated]
        return results[0] if prepared.context.single else results

    def _greedy(
        self, step: Any, texts: int, plan: _Plan, rules: Sequence[Rule], stream: Stream
    ) -> list[list[int]]:
        rows: list[list[int]] = [[] for _ in range(texts)]
        spoken, decoder = "", DecodeStream(skip_special_tokens=True)
        # Cleaning up spaces changes what was said before: such a text is told at its end.
        in_parts = plan.single and not self._encoder.options.get("clean_up_tokenization_spaces")
        for tokens in greedy(step, self._start, texts, self._ends, plan.max_tokens, rules):
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if not row or row[-1] not in self._ends:
                    row.append(token)
            if in_parts and (delta := decoder.step(self._encoder.tokenizer, rows[0][-1])):
                spoken += delta
                stream.emit({"text": delta})
        if plan.single:
            # What never became a whole character is still to be told, or everything.
            text = self._encoder.decode(rows[0], skip_special_tokens=True)
            assert text.startswith(spoken), "parts make the text"
            if rest := text[len(spoken) :]:
                stream.emit({"text": rest})
        return rows

    def _generated(self, tokens: list[int], prompt: int) -> Generated:
        reason: FinishReason = "stop" if tokens and tokens[-1] in self._ends else "length"
        text = self._encoder.decode(tokens, skip_special_tokens=True)
        return Generated(text, reason, prompt, len(tokens))


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
