"""Sound files to samples with soundfile, soxr and numpy alone, as the framework's feature extractor does it.

A file becomes samples as transformers' ``load_audio(backend="soundfile")`` makes them: decoded to single
precision, the mean of its channels, resampled by soxr's high quality to the model's rate. Each sound is then
brought to mean 0 and variance 1 over its own length, and shorter ones are padded at their end. Same operations
in the same order: the result is bit-identical.

How long a sound is and how many channels it has is read from its header and checked before anything is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import soundfile  # type: ignore[import-untyped]  # it ships no types
import soxr  # type: ignore[import-untyped]  # likewise
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks.prepared import Limits, subject_among

INPUT, MASK = "input_values", "attention_mask"
"""The tensors of a model that takes sounds: FP32 and, where it wants one, INT32, both (sounds, samples)."""
MOST_VALUES_PER_SECOND = 384_000
"""Of all channels of a file together: eight at 48 kHz, two at 192 kHz."""
_LEAST_RATE = 1000
_KNOWN = "a WAV, FLAC, OGG, MP3 or AIFF file"
_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")
_BEGINNINGS = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"FORM")
_T = TypeVar("_T")


class AudioSteps(BaseModel):
    """What becomes of a sound. ``kernels`` and ``strides`` are of the convolutions that make frames of it.

    ``mask`` says whether the model takes an attention mask over the samples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: int = Field(ge=_LEAST_RATE, le=192_000)
    normalize: bool
    padding: float
    mask: bool
    kernels: tuple[int, ...] = Field(min_length=1)
    strides: tuple[int, ...] = Field(min_length=1)

    def frames(self, samples: int) -> int:
        """How many frames the model makes of so many samples; 0 if they are too few for one."""
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    @property
    def least_samples(self) -> int:
        """How many samples make one frame."""
        least = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            least = (least - 1) * stride + kernel
        return least


class AudioEncoder:
    """The steps of one package, set up for one task.

    It reads :class:`AudioSteps` from ``manifest.preprocessing[task]["steps"]``.
    """

    def __init__(self, manifest: Manifest, task: str, limits: Limits) -> None:
        self.options: dict[str, Any] = manifest.preprocessing.get(task, {})
        try:
            self.steps = AudioSteps.model_validate(self.options.get("steps"))
        except ValidationError as error:
            raise RefusedError(
                f"the package does not say how the task {task} prepares sounds: {error.errors()[0]['msg']}",
                field=f"preprocessing.{task}.steps",
            ) from error
        self._max_seconds = limits.max_audio_seconds
        taken = {spec.name for spec in manifest.artifact.inputs}
        made = {INPUT, MASK} if self.steps.mask else {INPUT}
        if taken != made:
            raise RefusedError(
                f"the task {task} makes other tensors of sounds than the model takes",
                field="artifact.inputs",
                expected=", ".join(sorted(made)),
                got=", ".join(sorted(taken)),
            )

    def encode(self, files: Sequence[bytes], field: str) -> tuple[dict[str, NDArray[Any]], list[int]]:
        """The samples of sound files as tensors of shape (sounds, samples), and the frames of each.

        ``field`` is the request's: ``audio``, or ``audios``, whose files errors number.

        Raises:
            InvalidInputError: naming the file that is no sound, a broken one or one too short.
            PayloadTooLargeError: if they are too long by their headers; nothing was decoded.
        """
        fields = ["audio"] if field == "audio" else [f"audios[{number}]" for number in range(len(files))]
        opened = [_open(content, name) for name, content in zip(fields, files, strict=True)]
        seconds = max(file.frames / file.samplerate for file in opened) * len(opened)
        if seconds > self._max_seconds:
            raise PayloadTooLargeError(
                f"{field}: {seconds:.6g} seconds of sound, each one counted as the longest, are over the limit",
                field=field,
                expected=f"at most {self._max_seconds:g} seconds",
                got=f"{seconds:.6g} seconds",
                hint="send shorter sounds or fewer at a time, or raise MLOS_MAX_AUDIO_SECONDS",
            )
        sounds = [self._sound(file, name) for name, file in zip(fields, opened, strict=True)]
        longest = max(map(len, sounds))
        values = np.full((len(sounds), longest), self.steps.padding, dtype=np.float32)
        mask = np.zeros(values.shape, dtype=np.int32)
        for number, sound in enumerate(sounds):
            values[number, : len(sound)] = sound
            mask[number, : len(sound)] = 1
        tensors: dict[str, NDArray[Any]] = {INPUT: values}
        if self.steps.mask:
            tensors[MASK] = mask
        return tensors, [self.steps.frames(len(sound)) for sound in sounds]

    def _sound(self, file: soundfile.SoundFile, field: str) -> NDArray[np.float32]:
        """The samples of one file, at the model's rate and normalised."""
        samples = _read(lambda: _samples(file, self.steps.rate), field)
        if len(samples) < self.steps.least_samples:
            raise InvalidInputError(
                f"{field} is too short to hear anything in it",
                field=field,
                expected=f"at least {self.steps.least_samples} samples at {self.steps.rate} Hz",
                got=f"{len(samples)} samples",
            )
        if self.steps.normalize:
            with np.errstate(over="ignore", invalid="ignore"):
                samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        if not np.isfinite(samples).all():
            raise InvalidInputError(
                f"{field} holds NaN, infinity or numbers beyond all measure",
                field=field,
                expected="finite samples",
                got="others",
            )
        return samples


def audios_of(request: InferenceRequest, task: str) -> tuple[str, list[bytes]]:
    """Which field of the request has its sound files, and the files.

    Raises:
        InvalidInputError: if it holds something else, or no sound at all.
    """
    kind = subject_among(request, task, "audio", "audios")
    sounds = [request.audio] if request.audio is not None else request.audios
    if not sounds:
        raise InvalidInputError(
            "audios holds no sound", field="audios", expected="at least one sound", got="an empty list"
        )
    return kind, sounds


def _open(content: bytes, field: str) -> soundfile.SoundFile:
    """The sound, its header read and checked.

    Raises:
        InvalidInputError: if it is not a sound of a known format, or does not say how long it is.
    """
    # libsndfile knows many rare formats; their parsers need not meet what a stranger sends.
    mpeg = content[:1] == b"\xff" and content[1:2] >= b"\xe0"
    if not mpeg and not content.startswith(_BEGINNINGS):
        raise InvalidInputError(
            f"{field} is not {_KNOWN}",
            field=field,
            expected=_KNOWN,
            got=f"{len(content)} bytes that begin with {content[:16]!r}" if content else "no bytes",
        )
    file = _read(lambda: soundfile.SoundFile(io.BytesIO(content)), field)
    if file.format not in _FORMATS:
        raise InvalidInputError(f"{field} is not {_KNOWN}", field=field, expected=_KNOWN, got=file.format)
    if file.samplerate < _LEAST_RATE or file.samplerate * file.channels > MOST_VALUES_PER_SECOND:
        raise InvalidInputError(
            f"{field}: {file.channels} channels at {file.samplerate} Hz are not decoded",
            field=field,
            expected=f"at least {_LEAST_RATE} Hz, and {MOST_VALUES_PER_SECOND} values a second of all channels",
            got=f"{file.channels} channels at {file.samplerate} Hz",
        )
    if file.frames > 1 << 48:  # libsndfile's way to say that the header does not say it
        raise InvalidInputError(
            f"{field} does not say how long it is", field=field, expected="a header with a length", got="none"
        )
    return file


def _samples(file: soundfile.SoundFile, rate: int) -> NDArray[np.float32]:
    """All of the file as ``load_audio`` reads it: one channel at ``rate``."""
    with file:
        channels = file.read(dtype="float32", always_2d=True).T
        source = file.samplerate
    samples = channels.mean(axis=0) if channels.shape[0] > 1 else channels[0]
    if source != rate:
        wanted = math.ceil(samples.shape[-1] * rate / source)
        samples = soxr.resample(samples, source, rate, quality="soxr_hq")
        samples = np.pad(samples, (0, max(0, wanted - len(samples))))[:wanted]
    return np.ascontiguousarray(samples, dtype=np.float32)


def _read(read: Callable[[], _T], field: str) -> _T:
    """What ``read`` reads of the sound file in ``field``.

    Raises:
        InvalidInputError: if it cannot.
    """
    try:
        return read()
    except (RuntimeError, ValueError, TypeError) as error:  # what soundfile and soxr raise of broken files
        raise InvalidInputError(
            f"{field} cannot be decoded: {str(error).partition('>: ')[2] or error!s:.200}",
            field=field,
            expected="a whole sound file",
            got="a truncated or broken one",
        ) from error
