from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.client import drive
from benchmarks.results import Block, WorkloadResult, Written, table_of
from benchmarks.sides import Mlos, Peer, peer_names, side_named
from benchmarks.wire import Asked, check, written
from benchmarks.workloads import WORKLOADS
from benchmarks.writing import Continued, continued, read_rate
from rich.console import Console
from scripts import native
from tests.tiny_llama import alone, tiny_llama

from benchmarks import environments
from mlos.engines import LanguageModel, open_model
from mlos.errors import NotFoundError, ParityError, UsageError
from mlos.model import InferenceRequest
from mlos.parity import tolerance_named
from mlos.tasks import tasks_of

FP32 = tolerance_named("fp32")
RIGHT = Continued("tinyllama", "a river", 3, 4, "one two three four", "one")
ASKED = Asked({}, {}, continued=RIGHT)


def stream(
    *texts: str, reason: str | None = "length", usage: dict[str, int] | None = None, done: bool = True
) -> bytes:
    parts: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in texts
    ]
    parts.append({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
    if usage is not None:
        parts.append({"choices": [], "usage": usage})
    said = "".join(f"data: {json.dumps(part)}\n\n" for part in parts)
    return (": ping\n\n" + said + ("data: [DONE]\n\n" if done else "")).encode()


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


@pytest.mark.parametrize(
    "body",
    [
        stream("one", " two", " three", " four"),
        stream(" one", " two three", " four", usage=usage(3, 4)),  # a blank before, and fewer parts than tokens
        stream("one", " more"),  # last bits
    ],
)
def test_a_stream_of_all_tokens_that_begins_the_same_is_right(body: bytes) -> None:
    check("openai", ASKED, body, None, FP32)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (stream("two", " two", " three", " four"), "it writes 'two two three four', not 'one two"),
        (stream("one", reason="stop"), "not the 4 tokens that were asked for: finish_reason stop"),
        (stream("one", reason=None), "finish_reason None"),
        (stream("one", usage=usage(3, 3)), "not the 4 tokens"),
        (stream("one", usage=usage(2, 4)), "read the prompt as 2 tokens, not 3"),
        (stream("one", done=False), "does not end with"),
        (b'data: {"error": "busy"}\n\ndata: [DONE]\n\n', "not an answer in the form openai: KeyError"),
        (b"data: {\n\n", "not an answer"),
    ],
)
def test_another_stream_is_wrong(body: bytes, told: str) -> None:
    with pytest.raises(ParityError, match=told):
        check("openai", ASKED, body, None, FP32)


def test_a_prompt_is_asked_in_openais_words() -> None:
    head, _, body = written("openai", "/v1/completions", ASKED).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert json.loads(body) == {
        "model": "tinyllama", "prompt": "a river", "max_tokens": 4, "temperature": 0, "stream": True,
    }  # fmt: skip


def test_only_sides_that_speak_openai_are_asked_so() -> None:
    spoken = {name for name in peer_names() if "openai" in side_named(name).speaks}
    assert spoken == {"llama_cpp_server", "openvino_genai", "xllamacpp"}
    assert "openai" in Mlos("mlos").speaks
    for name in spoken:
        assert side_named(name).speaks == {"openai"}
    assert {wire for one in ("tinyllama", "tinyllama-prompt") for wire, _ in WORKLOADS[one].things} == {
        "openai"
    }


CLOSES = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self): self.answer(b"")
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"yes")
        self.close_connection = True
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_server_that_ends_its_connection_after_each_answer_is_asked_over_another(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(CLOSES)
    (tmp_path / "peer.toml").write_text("""
        title = "closes"
        command = ["{python}", "{folder}/server.py", "{port}"]
        ready = "/"
        configuration = ["one answer a connection"]
        wires = { openai = { form = "openai", path = "/" } }
    """)
    with Peer("closes", tmp_path, Path(sys.executable)).serving(SimpleNamespace(), {}) as served:  # type: ignore[arg-type]
        timed = drive(served.port, [written("openai", "/", ASKED)] * 3, [0, 1, 2], 2, 0.1, 6)
    assert len(timed.latencies) >= 6
    assert {body for _, body, _ in timed.answers} == {b"yes"}


def test_a_build_that_is_not_kept_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(NotFoundError, match=r"no build of llama\.cpp"):
        environments.native_wheel()
    folder = tmp_path / "mlos" / "builds" / native.build_key()
    folder.mkdir(parents=True)
    wheel = folder / "llama_cpp_python-1-py3-none-any.whl"
    (folder / "llama_cpp_converter-1-py3-none-any.whl").touch()
    wheel.touch()
    assert environments.native_wheel() == wheel


def test_the_share_of_what_memory_allows_stands_under_the_table() -> None:
    cost = Written(tokens=64, file_bytes=700_000_000, read_rate=14e9)  # 20 tokens a second at the most
    blocks = tuple(
        Block(
            group=0, place=place, side="mlos", thing=thing, n=1, seconds=1, median_ms=1, p90_ms=None, rate=rate,
            steady=True, steal_share=0, histogram={},
        )
        for place, (thing, rate) in enumerate((("openai/1", 0.25), ("openai/8", 0.75)))
    )  # fmt: skip
    result = WorkloadResult(
        name="tinyllama", about="texts", reference="x", digest="0", requests=1, written=cost, blocks=blocks
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table_of(result))
    assert "mlos openai/1: 16 tokens/s, 80% of reading the file at 14 GB/s" in shown.get()
    assert (
        "mlos openai/8: 48 tokens/s\n" in "\n".join(line.rstrip() for line in shown.get().splitlines()) + "\n"
    )


def test_a_drawn_prompt_is_as_long_as_asked_and_continued_to_the_end_by_the_engine_itself() -> None:
    made = tiny_llama()
    artifact = made.artifacts["Q4_K_M"]
    engine = open_model(made.folder, artifact, 1)
    request = InferenceRequest(prompt="a", task="text-generation")
    task = tasks_of(made.folder, made.manifest(artifact)).choose(request)
    found = continued(engine, task, "tinyllama", ("river", "stone", "cloud"), (16, 5), random.Random(0))
    prepared = task.preprocess(InferenceRequest(prompt=found.prompt, task="text-generation"))
    assert prepared.inputs["input_ids"].shape == (1, 16)
    assert isinstance(engine, LanguageModel)
    assert len(alone(engine, prepared.inputs["input_ids"][0].tolist(), 5)) == 5
    assert found.text.startswith(found.first)
    with pytest.raises(UsageError, match="does not write 5 tokens"):  # no word is one token with the first
        continued(engine, task, "tinyllama", ("river",), (1, 5), random.Random(0))


def test_memory_is_read_at_some_rate() -> None:
    assert 1e8 < read_rate(2) < 1e13
