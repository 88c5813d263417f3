"""Sounds become samples bit for bit as the framework makes them; what is none is refused before it costs."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile  # type: ignore[import-untyped]  # it ships no types
import transformers
from tests.small import Candidate, Small
from transformers.audio_utils import load_audio

from mlos.errors import InvalidInputError, ParityError, PayloadTooLargeError
from mlos.tasks.audio import AudioEncoder
from mlos.tasks.prepared import Limits

TASK = "automatic-speech-recognition"


@pytest.fixture
def candidate(small: Small, tmp_path: Path) -> Candidate:
    return small.candidate("wav2vec2", tmp_path / "candidate")


@pytest.fixture
def encoder(candidate: Candidate) -> AudioEncoder:
    return AudioEncoder(candidate.draft(), TASK, Limits(max_audio_seconds=5))


def sound(kind: str, subtype: str, rate: int, channels: int, count: int = 8000) -> bytes:
    noise = np.random.default_rng(0).normal(0, 0.1, (count, channels)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "rate", "channels"),
    [
        ("WAV", "PCM_U8", 8_000, 1),
        ("WAV", "PCM_16", 16_000, 1),
        ("WAV", "PCM_24", 44_100, 2),
        ("WAV", "FLOAT", 22_050, 1),
        ("FLAC", "PCM_16", 44_100, 2),
        ("OGG", "VORBIS", 48_000, 2),
        ("MP3", "MPEG_LAYER_III", 44_100, 2),
        ("AIFF", "PCM_16", 11_025, 1),
    ],
)
def test_samples_are_the_frameworks(
    encoder: AudioEncoder, kind: str, subtype: str, rate: int, channels: int
) -> None:
    content = sound(kind, subtype, rate, channels)
    ours, _ = encoder.encode([content], "audio")
    samples = load_audio(base64.b64encode(content).decode(), 16_000, backend="soundfile")
    extractor: Any = transformers.Wav2Vec2FeatureExtractor
    theirs = extractor()(samples, sampling_rate=16_000, return_tensors="np")
    np.testing.assert_array_equal(ours["input_values"], theirs["input_values"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, world",
        sound("FLAC", "PCM_16", 44_100, 2)[:9000],
        sound("WAV", "PCM_16", 16_000, 1, 100),
        sound("WAV", "PCM_16", 1, 1, 3),
    ],
    ids=["empty", "text", "cut off", "too short", "one sample a second"],
)
def test_what_is_no_sound_is_refused(encoder: AudioEncoder, content: bytes) -> None:
    with pytest.raises(InvalidInputError, match="audio"):
        encoder.encode([content], "audio")


def test_a_long_sound_is_refused_by_its_header(encoder: AudioEncoder) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000 * 600, dtype=np.int16), 16_000, format="FLAC")
    with pytest.raises(PayloadTooLargeError, match="600 seconds"):
        encoder.encode([file.getvalue()], "audio")


def test_silence_is_answered(encoder: AudioEncoder) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(16_000), 16_000, format="WAV")
    tensors, frames = encoder.encode([file.getvalue()], "audio")
    assert not tensors["input_values"].any()
    assert frames == [49]


def test_a_flipped_weight_bit_fails(candidate: Candidate) -> None:
    model = onnx.load(candidate.folder / "model.onnx")
    weight = next(each for each in model.graph.initializer if each.dims[:1] == [32] and len(each.dims) == 3)
    numbers = onnx.numpy_helper.to_array(weight).copy()
    numbers.view(np.uint32).flat[numbers.size // 2] ^= 1 << 29  # one bit of an exponent
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    onnx.save(model, candidate.folder / "model.onnx")
    with pytest.raises(ParityError):
        candidate.prove()


@pytest.mark.parametrize(
    ("key", "value"), [("normalize", False), ("rate", 8_000)], ids=["not normalised", "another rate"]
)
def test_other_steps_fail(candidate: Candidate, key: str, value: object) -> None:
    facts = candidate.converted.preprocessing[TASK]
    wrong = {TASK: {**facts, "steps": {**facts["steps"], key: value}}}
    with pytest.raises(ParityError, match="wrong preprocessing"):
        candidate.prove(preprocessing=wrong)


def test_tokens_in_another_order_fail(candidate: Candidate) -> None:
    facts = candidate.converted.preprocessing[TASK]
    wrong = {TASK: {**facts, "tokens": facts["tokens"][:5] + facts["tokens"][:4:-1]}}
    with pytest.raises(ParityError, match="wrong result"):
        candidate.prove(preprocessing=wrong)
