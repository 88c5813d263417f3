"""Layers that see only the last tokens: what the library gives away of a sequence serves no other prompt."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_llama import alone

from mlos.engines import Sampling
from mlos.engines import llama_cpp_together as together
from mlos.engines.llama_cpp import LlamaCppEngine, language_model
from mlos.engines.llama_cpp_library import library

WINDOW, WIDTH, HEADS, LAYERS, WORDS, LENGTH, HIDDEN = 32, 32, 4, 2, 300, 512, 64
TEXT, UINT32, FLOAT32 = 8, 4, 6


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _fact(name: str, value: str | int | float) -> bytes:
    if isinstance(value, str):
        return _text(name) + struct.pack("<I", TEXT) + _text(value)
    kind, form = (UINT32, "<I") if isinstance(value, int) else (FLOAT32, "<f")
    return _text(name) + struct.pack("<I", kind) + struct.pack(form, value)


def write_model(file: Path) -> None:
    """A file of random weights: every layer sees the last :data:`WINDOW` tokens."""
    family, draw = "cohere2", np.random.default_rng(1)
    facts: dict[str, str | int | float] = {
        "general.architecture": family,
        f"{family}.context_length": LENGTH,
        f"{family}.embedding_length": WIDTH,
        f"{family}.block_count": LAYERS,
        f"{family}.feed_forward_length": HIDDEN,
        f"{family}.attention.head_count": HEADS,
        f"{family}.attention.head_count_kv": HEADS,
        f"{family}.attention.layer_norm_epsilon": 1e-5,
        f"{family}.attention.sliding_window": WINDOW,
        f"{family}.logit_scale": 1.0,
        f"{family}.rope.dimension_count": WIDTH // HEADS,
        f"{family}.vocab_size": WORDS,
        "tokenizer.ggml.model": "no_vocab",
    }
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        own: dict[str, tuple[int, ...]] = {"attn_norm": (WIDTH,), "ffn_down": (WIDTH, HIDDEN)}
        own |= {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        own |= {f"ffn_{name}": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    told, data = b"", b""
    for name, shape in shapes.items():
        spread = 1.0 if name == "token_embd" else 0.6
        values = np.ones(shape) if "norm" in name else draw.normal(0, spread, shape)
        told += _text(f"{name}.weight") + struct.pack("<I", len(shape))
        told += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), 0, len(data))
        data += values.astype(np.float32).tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(facts))
    head += b"".join(_fact(name, value) for name, value in facts.items()) + told
    file.write_bytes(head + bytes(-len(head) % 32) + data)


def test_a_beginning_whose_cells_were_given_away_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "window.gguf")
    engine = LlamaCppEngine.open(tmp_path, language_model("window.gguf", "F16", WORDS), 1)
    api = library()
    assert api.llama_model_n_swa(engine._model.pointer) == WINDOW
    monkeypatch.setattr(together, "MAX_CACHE_BYTES", 0)  # cells for one sequence of full length
    places = engine.together(4)
    assert places is not None
    draw = np.random.default_rng(2)

    def drawn(count: int) -> list[int]:
        return [int(token) for token in draw.integers(0, WORDS, count)]

    begun = [drawn(200) for _ in range(3)]
    gone = 0
    for number in range(40):
        prompt = begun[number % 3][: int(draw.integers(5, 200))] + drawn(int(draw.integers(1, 60)))
        place = places.join(prompt, Sampling(), 4)
        assert place is not None
        steps = (places.step(lambda: None) for _ in itertools.count())
        written = list(itertools.islice((step[place] for step in steps if place in step), 4))
        places.leave(place)
        first = [api.llama_memory_seq_pos_min(places._context.memory, each) for each in range(4)]
        gone += any(at > 0 for at in first)
        assert written[0] == alone(engine, prompt, 1)[0], number
    assert gone  # else nothing was given away, and this says nothing
