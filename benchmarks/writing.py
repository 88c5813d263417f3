"""Texts that a language model writes: how they are asked for, what a right one is, and what memory allows.

All sides are asked in the words of OpenAI's ``/v1/completions``, greedily and as a stream. Prompts are drawn
such that our engine, asked here alone, writes all the tokens that are asked for.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np

from mlos.engines import Engine
from mlos.errors import ParityError, UsageError
from mlos.model import InferenceRequest
from mlos.tasks import Silence, Task
from mlos.tasks.generation import Generated

_TRIES = 100
"""Prompts that are drawn for one that the model continues to the end."""
_CLEAR = 0.2
"""How far the first token must lead over the second, in standard deviations: more than last bits make."""
_EVENT, _DONE = b"data: ", b"[DONE]"
_READ_BYTES = 256 << 20
_READS = 5


@dataclass(frozen=True)
class Continued:
    """A prompt, how many tokens are to follow it, and the text of all of them and of the first."""

    model: str
    prompt: str
    prompt_tokens: int
    tokens: int
    text: str
    first: str

    def body(self) -> bytes:
        """What is asked, in OpenAI's words."""
        return msgspec.json.encode(
            {
                "model": self.model,
                "prompt": self.prompt,
                "max_tokens": self.tokens,
                "temperature": 0,
                "stream": True,
            }
        )

    def check(self, body: bytes) -> None:
        """Hold a stream to it: as many tokens, and the same text or at least the same first token.

        Builds and batches of llama.cpp differ in last bits, after which two greedy texts may part.

        That a stream was ended by its length says that it has the tokens asked for; its ``usage``, where
        it tells one, must say so too.

        Raises:
            ParityError: if it does not.
            ValueError: if it is no such stream; or KeyError, TypeError, IndexError, msgspec.DecodeError.
        """
        text, reason, usage = _read(body)
        if reason != "length" or (usage is not None and usage["completion_tokens"] != self.tokens):
            raise ParityError(
                f"not the {self.tokens} tokens that were asked for: finish_reason {reason}, usage {usage}",
                field="finish_reason",
                expected="length",
                got=str(reason),
            )
        if usage is not None and usage["prompt_tokens"] != self.prompt_tokens:
            raise ParityError(
                f"it read the prompt as {usage['prompt_tokens']} tokens, not {self.prompt_tokens}",
                field="prompt_tokens",
            )
        text = text.lstrip()  # some give the blank of the first word, some do not
        if text != self.text and not text.startswith(self.first):
            raise ParityError(
                f"it writes {text[:40]!r}, not {self.text[:40]!r}",
                field="text",
                expected=self.first,
                got=text[:40],
            )


def continued(
    engine: Engine, task: Task, model: str, words: tuple[str, ...], size: tuple[int, int], chance: random.Random
) -> Continued:
    """A prompt of so many tokens with so many to follow (``size``), drawn until the model writes all of them.

    Raises:
        UsageError: if it ends before that, or writes what is no text, whatever is drawn.
    """
    length, tokens = size
    for _ in range(_TRIES):
        prompt = chance.choice(words)
        while (lacking := length - _tokens(task, prompt)) > 0:
            prompt += "".join(f" {word}" for word in chance.choices(words, k=max(1, lacking // 4)))
        if lacking < 0:
            continue
        if not _clear(engine, task, prompt):
            continue
        written, first = (_write(engine, task, prompt, most) for most in (tokens, 1))
        text, begins = written.text.lstrip(), first.text.strip()
        whole = written.finish_reason == "length" and written.completion_tokens == tokens
        if whole and begins and text.startswith(begins) and "�" not in text:
            return Continued(model, prompt, length, tokens, text, begins)
    raise UsageError(f"{model} does not write {tokens} tokens after any of {_TRIES} prompts", field="model")


def read_rate(threads: int) -> float:
    """Bytes a second that so many threads read from memory together: the best of a few passes."""
    part = np.ones(_READ_BYTES // 4, np.float32)
    parts = np.array_split(part, threads)

    def read(one: Any) -> float:
        return float(one.max())

    with ThreadPoolExecutor(threads) as pool:
        taken = []
        for _ in range(_READS):
            began = time.perf_counter()
            list(pool.map(read, parts))
            taken.append(time.perf_counter() - began)
    return part.nbytes / min(taken)


def _tokens(task: Task, prompt: str) -> int:
    prepared = task.preprocess(InferenceRequest(prompt=prompt, task="text-generation"))
    return int(prepared.inputs["input_ids"].shape[1])


def _clear(engine: Engine, task: Task, prompt: str) -> bool:
    """Whether the first token is no matter of last bits."""
    prepared = task.preprocess(InferenceRequest(prompt=prompt, task="text-generation"))
    (logits,) = engine.run(prepared.inputs).values()
    scores = np.sort(logits[0, -1])
    return bool(scores[-1] - scores[-2] > _CLEAR * scores.std())


def _write(engine: Engine, task: Task, prompt: str, most: int) -> Generated:
    parameters = {"max_tokens": most, "temperature": 0}
    prepared = task.preprocess(InferenceRequest(prompt=prompt, task="text-generation", parameters=parameters))
    return cast(Generated, task.compute(engine, prepared, Silence()))


def _read(body: bytes) -> tuple[str, str | None, dict[str, int] | None]:
    text, reason, usage, done = "", None, None, False
    for line in body.splitlines():
        if not line.startswith(_EVENT):
            continue
        said = line.removeprefix(_EVENT).strip()
        if said == _DONE:
            done = True
            continue
        part = msgspec.json.decode(said)
        usage = part.get("usage") or usage
        for choice in part["choices"]:
            text += choice["text"]
            reason = choice.get("finish_reason") or reason
    if not done:
        raise ValueError(f"the stream does not end with [DONE]: {body[-100:]!r}")
    return text, reason, usage
