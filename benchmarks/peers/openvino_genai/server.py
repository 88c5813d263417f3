"""openvino-genai's continuous batching behind OpenAI's ``/v1/completions``; it has no server of its own.

Its reader of GGUF takes the tokenizers of GPT-2's kind alone and fails on Llama's (``IndexError: map::at``),
so the tokenizer is made here of the file's own vocabulary and given to it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openvino
import openvino_genai
import uvicorn
from openvino_tokenizers import convert_tokenizer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from transformers import LlamaTokenizer
from transformers.tokenization_utils_base import generate_merges

SAID = json.loads(os.environ["MLOS_BENCH"])
_REASONS = {
    openvino_genai.GenerationFinishReason.STOP: "stop",
    openvino_genai.GenerationFinishReason.LENGTH: "length",
}
_CACHE_GB = 1


@dataclass(frozen=True)
class Text:
    """One that is being written: where its tokens come from and go to."""

    handle: Any
    loop: asyncio.AbstractEventLoop
    parts: asyncio.Queue[tuple[list[int], str | None]] = field(default_factory=asyncio.Queue)

    def pass_on(self) -> bool:
        """Take what was written to who waits for it; whether that was the last."""
        reason = None
        while self.handle.can_read():
            for part in self.handle.read().values():
                reason = _REASONS.get(part.finish_reason)
                self.loop.call_soon_threadsafe(self.parts.put_nowait, (part.generated_ids, reason))
        return reason is not None


class Writer:
    """The pipeline on a thread of its own, which continues all texts that were asked for, step by step."""

    def __init__(self, model: Path, tokenizer: LlamaTokenizer, threads: int, sequences: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_seqs = _CACHE_GB, sequences
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model, _converted(tokenizer), scheduler, "CPU", INFERENCE_NUM_THREADS=threads
        )
        self._numbers, self._changed = itertools.count(), threading.Condition()
        self._texts: list[Text] = []
        threading.Thread(target=self._write, daemon=True).start()

    def start(self, ids: list[int], tokens: int) -> Text:
        """Begin a text after ``ids``, greedily, of so many tokens at most."""
        config = openvino_genai.GenerationConfig(max_new_tokens=tokens, do_sample=False)
        with self._changed:
            handle = self._pipeline.add_request(
                next(self._numbers), openvino.Tensor(np.array([ids], np.int64)), config
            )
            text = Text(handle, asyncio.get_running_loop())
            self._texts.append(text)
            self._changed.notify()
        return text

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._texts)
            self._pipeline.step()
            with self._changed:
                self._texts = [text for text in self._texts if not text.pass_on()]


def _tokenizer(model: Path) -> LlamaTokenizer:
    fields = gguf.GGUFReader(model).fields
    tokens, scores = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return LlamaTokenizer(vocabulary, generate_merges(vocabulary, dict(zip(tokens, scores, strict=True))))


def _converted(tokenizer: LlamaTokenizer) -> openvino_genai.Tokenizer:
    folder = Path("tokenizer")
    folder.mkdir()
    for name, model in zip(
        ("tokenizer", "detokenizer"), convert_tokenizer(tokenizer, with_detokenizer=True), strict=True
    ):
        openvino.save_model(model, folder / f"openvino_{name}.xml")
    return openvino_genai.Tokenizer(folder)


def _end_with(failure: threading.ExceptHookArgs) -> None:
    """Texts whose writer has failed would wait for ever: end, so that the run tells of it."""
    threading.__excepthook__(failure)
    os._exit(1)


def main() -> None:
    """Serve until a signal."""
    threading.excepthook = _end_with
    model = Path(SAID["model"])
    tokenizer = _tokenizer(model)
    writer = Writer(model, tokenizer, SAID["threads"], SAID["sequences"])

    async def complete(request: Request) -> StreamingResponse:
        asked = await request.json()
        ids = [tokenizer.bos_token_id, *tokenizer.encode(asked["prompt"], add_special_tokens=False)]
        text = writer.start(ids, asked["max_tokens"])

        async def stream() -> AsyncIterator[str]:
            written: list[int] = []
            told, reason = "", None
            while reason is None:
                new, reason = await text.parts.get()
                written += new
                whole = tokenizer.decode(written, skip_special_tokens=True)
                choice = {"index": 0, "text": whole[len(told) :], "finish_reason": reason}
                told = whole
                yield f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"
            usage = {"prompt_tokens": len(ids), "completion_tokens": len(written)}
            yield f"data: {json.dumps({'object': 'text_completion', 'choices': [], 'usage': usage})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    async def ready(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ready")

    app = Starlette(
        routes=[Route("/health", ready), Route("/v1/completions", complete, methods=["POST"])],
    )
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
