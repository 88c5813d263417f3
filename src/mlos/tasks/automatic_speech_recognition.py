"""Speech recognition: what is said in a sound, by a model that names a character for each of its frames."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.audio import AudioEncoder, audios_of
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, require_finite
from mlos.tasks.task import SinglePass

_OUTPUT = "logits"
_KNOWN: Known = {
    "return_timestamps": (
        "'word' or 'char'",
        lambda value: isinstance(value, str) and value in ("word", "char"),
    )
}


class AutomaticSpeechRecognition(SinglePass):
    """The transcript of each sound, as the framework's automatic-speech-recognition pipeline answers.

    The likeliest token of each frame is taken, repeated ones count once, and blanks are dropped (connectionist
    temporal classification, decoded greedily). It reads from
    ``manifest.preprocessing["automatic-speech-recognition"]``: ``tokens`` (their texts in the order of the
    model's ``logits``), ``blank`` and ``delimiter`` (two of them), ``space`` (what is written for the
    delimiter), ``lower`` (is the transcript in lower case?), ``ratio`` (samples from one frame to the next),
    and what :class:`~mlos.tasks.audio.AudioEncoder` reads.

    A sound is answered with ``{"text": ...}``; with the parameter ``return_timestamps`` (``word`` or ``char``)
    also with ``chunks`` of ``{"text", "timestamp": [start, end]}`` in seconds. Several sounds are answered with
    a list of those; frames of padding are not transcribed.
    """

    name: ClassVar[str] = "automatic-speech-recognition"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = AudioEncoder(manifest, self.name, limits)
        options = self._encoder.options
        tokens = options.get("tokens")
        shapes = {spec.name: spec.shape for spec in manifest.artifact.outputs}
        if not isinstance(tokens, list) or shapes.get(_OUTPUT, ())[2:] != (len(tokens),):
            raise RefusedError(
                "the package does not name the tokens of the model's logits",
                field=f"preprocessing.{self.name}.tokens",
                expected="a text for each",
                got=f"{tokens!r:.100}",
            )
        try:
            self._tokens = [str(token) for token in tokens]
            self._blank, self._delimiter = str(options["blank"]), str(options["delimiter"])
            self._space, self._lower = str(options["space"]), bool(options["lower"])
            self._ratio = int(options["ratio"])
        except (KeyError, ValueError) as error:
            raise RefusedError(
                f"the package does not say how the task {self.name} makes text: {error}",
                field=f"preprocessing.{self.name}",
            ) from error

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds sounds."""
        return request.audio is not None or request.audios is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Decode and prepare; the sounds of one request become one padded batch."""
        field, sounds = audios_of(request, self.name)
        timestamps = check_parameters(request, _KNOWN).get("return_timestamps")
        tensors, frames = self._encoder.encode(sounds, field)
        return Prepared(tensors, (_OUTPUT,), (field == "audio", frames, timestamps))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Write what ``logits`` of shape (sounds, frames, tokens) say."""
        single, frames, timestamps = prepared.context
        logits = require_finite(_OUTPUT, computed[_OUTPUT])
        answers = [
            self._transcript(row[:count].argmax(axis=-1).tolist(), timestamps)
            for row, count in zip(logits, frames, strict=True)
        ]
        return answers[0] if single else answers

    def _transcript(self, numbers: list[int], timestamps: str | None) -> dict[str, Any]:
        characters: list[tuple[str, int, int]] = []
        end = 0
        for token, repeated in groupby(self._tokens[number] for number in numbers):
            start, end = end, end + len(list(repeated))
            if token != self._blank:
                characters.append((self._space if token == self._delimiter else token, start, end))
        text = "".join(character for character, _, _ in characters).strip()
        answer: dict[str, Any] = {"text": text.lower() if self._lower else text}
        if timestamps is not None:
            chunks = characters if timestamps == "char" else self._words(characters)
            answer["chunks"] = [
                {"text": written, "timestamp": [self._seconds(start), self._seconds(end)]}
                for written, start, end in chunks
            ]
        return answer

    def _words(self, characters: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
        """Runs of characters without a space, each from its first frame to its last."""
        words = []
        for is_space, run in groupby(characters, lambda character: character[0] == self._space):
            if not is_space:
                held = list(run)
                words.append(("".join(text for text, _, _ in held), held[0][1], held[-1][2]))
        return words

    def _seconds(self, frame: int) -> float:
        return float(np.float64(frame * self._ratio) / self._encoder.steps.rate)
