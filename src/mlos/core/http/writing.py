"""The two ways in which OpenAI's protocol asks for text: a conversation's next turn, and a prompt continued.

References: https://platform.openai.com/docs/api-reference/chat and .../completions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import msgspec

from mlos.core.dataplane import Inference
from mlos.core.written import Written
from mlos.errors import InvalidInputError
from mlos.model import InferenceRequest, Message

T = TypeVar("T")

_TEMPERATURE = 1.0
"""What the protocol says where a request does not."""
_COMPLETION_TOKENS = 16
"""Likewise, of completions."""
_PARAMETERS = (
    *("top_p", "presence_penalty", "frequency_penalty", "seed", "stop"),
    *("top_k", "min_p", "repetition_penalty"),
)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What a stream holds besides its parts."""

    include_usage: bool = False


class Writing(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What both have in common. ``top_k``, ``min_p`` and ``repetition_penalty`` are vLLM's additions."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class TextPart(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One part of a message's content; texts alone are taken."""

    type: Literal["text"]
    text: str


class ChatMessage(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One message of the conversation."""

    role: str
    content: str | list[TextPart]


class ChatRequest(Writing, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A chat completion request."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class CompletionRequest(Writing, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A completion request. ``special_tokens`` is ours: are control tokens in the prompt meant as such?"""

    prompt: str | list[str]
    best_of: int | None = None
    echo: bool | None = None
    special_tokens: bool | None = None


@dataclass(frozen=True)
class Dress(Generic[T]):
    """One way of asking: what is read, what is asked of the model, and how its words are dressed.

    ``opening`` are the choices that a stream begins with; ``delta`` dresses a part's text, or why it ended.
    """

    kind: type[T]
    prefix: str
    whole: str
    part: str
    request: Callable[[T], InferenceRequest]
    choice: Callable[[Written], dict[str, Any]]
    delta: Callable[[str | None, str | None], dict[str, Any]]
    opening: Sequence[dict[str, Any]] = ()


def usage_of(inference: Inference) -> dict[str, int]:
    """What a written answer used."""
    prompt, completion = inference.tokens.get("prompt", 0), inference.tokens.get("completion", 0)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _parameters(asked: Writing, most: int | None) -> dict[str, Any]:
    _only("n", asked.n, (None, 1), "1: one completion is made at a time")
    parameters: dict[str, Any] = {
        name: value for name in _PARAMETERS if (value := getattr(asked, name)) is not None
    }
    parameters["temperature"] = asked.temperature if asked.temperature is not None else _TEMPERATURE
    if most is not None:
        parameters["max_tokens"] = most
    return parameters


def _only(field: str, value: Any, taken: tuple[Any, ...], expected: str) -> None:
    if value not in taken:
        raise InvalidInputError(
            f"{field}: expected {expected}", field=field, expected=expected, got=f"{value!r:.100}"
        )


def _chat_request(asked: ChatRequest) -> InferenceRequest:
    most = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    return InferenceRequest(
        messages=[Message(each.role, _text(each.content)) for each in asked.messages],
        task="chat",
        stream=bool(asked.stream),
        parameters=_parameters(asked, most),
    )


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _message(written: Written) -> dict[str, Any]:
    return {
        "index": 0,
        "message": {"role": "assistant", "content": written.text, "refusal": None},
        "logprobs": None,
        "finish_reason": written.finish_reason,
    }


def _message_delta(text: str | None, reason: str | None) -> dict[str, Any]:
    delta = {} if text is None else {"content": text}
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _completion_request(asked: CompletionRequest) -> InferenceRequest:
    _only("best_of", asked.best_of, (None, 1), "1: one completion is made at a time")
    _only("echo", asked.echo, (None, False), "false: a prompt is not repeated")
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(prompts) != 1:
        raise InvalidInputError(
            "prompt: one prompt is continued at a time",
            field="prompt",
            expected="a string, or a list of one",
            got=f"{len(prompts)} prompts",
        )
    parameters = _parameters(asked, asked.max_tokens if asked.max_tokens is not None else _COMPLETION_TOKENS)
    if asked.special_tokens is not None:
        parameters["special_tokens"] = asked.special_tokens
    return InferenceRequest(
        prompt=prompts[0], task="text-generation", stream=bool(asked.stream), parameters=parameters
    )


def _completion(written: Written) -> dict[str, Any]:
    return _completion_delta(written.text, written.finish_reason)


def _completion_delta(text: str | None, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": reason}


CHAT = Dress(
    kind=ChatRequest,
    prefix="chatcmpl",
    whole="chat.completion",
    part="chat.completion.chunk",
    request=_chat_request,
    choice=_message,
    delta=_message_delta,
    opening=(
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None},
    ),
)
COMPLETIONS = Dress(
    kind=CompletionRequest,
    prefix="cmpl",
    whole="text_completion",
    part="text_completion",
    request=_completion_request,
    choice=_completion,
    delta=_completion_delta,
)
