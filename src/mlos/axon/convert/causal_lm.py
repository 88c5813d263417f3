"""Causal language models: what continues a text. They are packaged as GGUF files, for llama.cpp."""

from __future__ import annotations

import datetime
import gc
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import chat_template_utils

from mlos.axon.convert.export import Exporter
from mlos.axon.convert.family import SAFE, Family, Made, choose_tasks, from_repository, load_model, read_config
from mlos.axon.convert.gguf_files import QUANTIZED, WRITTEN, converts, quantize, write_gguf
from mlos.engines.llama_cpp import language_model
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit
from mlos.model import InferenceRequest
from mlos.parity import Case

PACKAGED, FORMS = "Q4_K_M", ("F16",)
"""Precision of the package, and those on the way to it that are proved as well."""
_MODEL = "model.gguf"
_MOST, _DATE = "max_tokens", "date"
"""The parameters of golden requests."""
_UNICODE_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def covers(architecture: str | None, source: Path) -> bool:
    """Whether a repository is one of a causal language model."""
    return architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


class CausalLM(Family):
    """A causal language model and its tokenizer; its tasks are chat, where it has a template, and text."""

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerFast,
        source: Path,
        tasks: Iterable[str] | None,
    ) -> None:
        able = ["chat", "text-generation"] if tokenizer.chat_template else ["text-generation"]
        self.model, self.tokenizer, self._source = model, tokenizer, source
        self.tasks = choose_tasks(type(model).__name__, able, tasks)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        ends: Any = getattr(model.generation_config, "eos_token_id", None) or model.config.eos_token_id
        self._ends = {int(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None}

    @classmethod
    def load(cls, source: Path, tasks: Iterable[str] | None = None) -> Self:
        """Load a repository.

        Raises:
            RefusedError: if llama.cpp's converter does not know its architecture, weights or tokenizer are
                missing, or it cannot do one of ``tasks``.
            MissingExtraError: if the converter is not installed.
        """
        architecture = str(next(iter(read_config(source).get("architectures") or ()), None))
        if not converts(architecture):
            raise RefusedError(
                f"a {architecture} cannot be converted: llama.cpp does not know it",
                field="architectures",
                expected="a language model that llama.cpp serves, such as LlamaForCausalLM, Qwen2ForCausalLM, "
                "GPT2LMHeadModel or PhiForCausalLM",
                got=architecture,
            )
        model = load_model(transformers.AutoModelForCausalLM, source)
        return cls(model, _tokenizer(source), source, tasks)

    def write(
        self,
        output: Path,
        export: Exporter,
        emit: Emit,
        *,
        packaged: str = PACKAGED,
        forms: Sequence[str] = FORMS,
    ) -> Made:
        """The model as a GGUF file, and its configuration; tokenizer and chat template are in the file.

        Nothing of it goes through ``export``: llama.cpp has its own way of writing what it reads.

        ``packaged`` names the precision of the package's artifact, ``forms`` those of the artifacts on the way.
        The framework's model is let go of first: llama.cpp reads the repository itself, and needs the memory.
        """
        architecture = type(self.model).__name__
        del self.model
        gc.collect()  # modules refer to each other
        names = {precision: f"model.{precision}.gguf" for precision in forms} | {packaged: _MODEL}
        written = [precision for precision in names if precision in WRITTEN]
        for precision in written:
            write_gguf(self._source, output / names[precision], precision, architecture)
        for precision in (each for each in names if each in QUANTIZED):
            quantize(
                output / names[written[0]],
                output / names[precision],
                precision,
                lambda total: emit({"stage": "quantize", "total": total, "unit": "tensors"}),
                lambda done: emit({"done": done}),
            )
        shutil.copyfile(self._source / "config.json", output / "config.json")
        return Made(
            artifact=language_model(_MODEL, packaged, self._vocabulary),
            files=((_MODEL, "weights"), ("config.json", "config")),
            tools=_tools(),
            forms=tuple(language_model(names[form], form, self._vocabulary) for form in forms),
        )

    def preprocessing(self) -> dict[str, Any]:
        """What llama.cpp does otherwise: which tokens end an answer, and the Unicode form of texts, if any.

        It goes by the texts of tokens, and so takes Qwen2's ordinary word ``</s>`` for an end.
        """
        facts: dict[str, Any] = {"ends": sorted(self._ends)} if self._ends else {}
        form = _unicode_form(self.tokenizer)
        if form is not None:
            facts["normalization"] = form
        return dict.fromkeys(self.tasks, facts) if facts else {}

    def answer(self, name: str, request: InferenceRequest) -> Case:
        """The framework's logits for the prompt or conversation, and its own greedy continuation.

        The request's parameter ``max_tokens`` says how far that goes. A conversation has the parameter ``date``
        as well where the template tells the model the day: the record must be the same on every day.
        """
        task = request.task or ("chat" if request.messages is not None else "text-generation")
        self.require_task(name, task)
        most = request.parameters.get(_MOST)
        known = {_MOST, _DATE} if request.messages is not None else {_MOST}
        if not isinstance(most, int) or request.parameters.keys() - known:
            raise InvalidInputError(
                f"golden request {name} must have the parameter max_tokens and no other"
                + (", or date as well" if _DATE in known else ""),
                field=name,
                expected=" and ".join(sorted(known, reverse=True)),
                got=", ".join(request.parameters) or "none",
            )
        prompt = self._encode(name, request)
        logits = self.model(input_ids=prompt).logits
        generated, ended = self._continue(prompt, most)
        before = prompt[0].tolist()
        return Case(
            name=name,
            request=request,
            task=task,
            inputs={"input_ids": prompt.numpy()},
            outputs={"logits": logits.numpy()},
            result={
                # What the new tokens add: the space before the first token a tokenizer is given may be lost.
                "text": self._text(before + generated).removeprefix(self._text(before)),
                "finish_reason": "stop" if ended else "length",
                "usage": {"prompt_tokens": len(before), "completion_tokens": len(generated)},
            },
        )

    def _encode(self, name: str, request: InferenceRequest) -> torch.Tensor:
        """The request's tokens, of shape (1, tokens)."""
        encoded: Any
        if request.messages is not None:
            with _on(request.parameters.get(_DATE), name):
                encoded = self.tokenizer.apply_chat_template(
                    [{"role": message.role, "content": message.content} for message in request.messages],
                    add_generation_prompt=True,
                    return_dict=True,
                    return_tensors="pt",
                )
        else:
            text = request.prompt if request.prompt is not None else request.text
            if text is None:
                raise InvalidInputError(
                    f"golden request {name} has no prompt", field=name, expected="prompt, text or messages"
                )
            encoded = self.tokenizer(text, return_tensors="pt")
        tokens: torch.Tensor = encoded["input_ids"]
        return tokens

    def _continue(self, prompt: torch.Tensor, most: int) -> tuple[list[int], bool]:
        """The likeliest tokens one by one, at most ``most``, the ending one included; and whether it came."""
        tokens: list[int] = []
        step = self.model(input_ids=prompt, use_cache=True)
        while True:
            tokens.append(int(step.logits[0, -1].argmax()))
            if tokens[-1] in self._ends or len(tokens) == most:
                return tokens, tokens[-1] in self._ends
            following = torch.tensor([[tokens[-1]]])
            step = self.model(input_ids=following, past_key_values=step.past_key_values, use_cache=True)

    def _text(self, tokens: list[int]) -> str:
        text = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)  # of one sequence
        return text


@contextmanager
def _on(day: str | None, name: str) -> Iterator[None]:
    """Let the framework's templates think that it is ``day``: they read the clock, and cannot be told.

    Raises:
        InvalidInputError: if one reads it for the golden request ``name``, which names no day.
    """

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Self:
            if day is None:
                raise InvalidInputError(
                    f"golden request {name} must name a day: the model's chat template tells it",
                    field=name,
                    expected=f"the parameter {_DATE}, such as 2024-07-26",
                )
            return cls.fromisoformat(day)

    before = vars(chat_template_utils)["datetime"]
    setattr(chat_template_utils, "datetime", Clock)  # noqa: B010  (mypy forbids it written plainly)
    try:
        yield
    finally:
        setattr(chat_template_utils, "datetime", before)  # noqa: B010  (likewise)


def _unicode_form(tokenizer: transformers.PreTrainedTokenizerFast) -> str | None:
    """What the tokenizer makes of a text's characters before it cuts the text; None if it leaves them."""
    step = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"] or {}
    kinds = [each["type"] for each in step.get("normalizers", [step]) if each]
    return next((kind for kind in kinds if kind in _UNICODE_FORMS), None)


def _tokenizer(source: Path) -> transformers.PreTrainedTokenizerFast:
    """The repository's ``tokenizer.json`` as it is.

    The class that ``tokenizer_config.json`` names may rebuild it by rules of its own: LlamaTokenizer of
    transformers 5 puts no space after a control token, where the published file and llama.cpp do.
    """
    if not (source / "tokenizer.json").is_file():
        raise RefusedError("the repository's tokenizer has no tokenizer.json form", field="tokenizer")
    tokenizer: transformers.PreTrainedTokenizerFast = from_repository(
        lambda: transformers.PreTrainedTokenizerFast.from_pretrained(source, **SAFE)
    )
    return tokenizer


def _tools() -> dict[str, str]:
    import llama_cpp

    return {"llama-cpp-python": str(llama_cpp.__version__)}
