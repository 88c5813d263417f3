"""Make the sounds of the catalogue again: voices of nobody, from seeds, so that they are ours to give.

Each is a row of syllables: a tone with harmonics whose pitch glides, shaped by two resonances as a mouth does
it, noise at the beginning of some, silence between. Needs numpy and soundfile.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile  # type: ignore[import-untyped]  # it ships no types
from numpy.typing import NDArray

CATALOGUE = Path(__file__).resolve().parent.parent / "src" / "mlos" / "catalogue"
FOLDER = CATALOGUE / "audio"
CALIBRATION = CATALOGUE / "calibration"
"""Voices apart from those of golden requests, of other lengths, pitches and noises."""
RATE = 16_000


def main() -> None:
    """Write every file into the catalogue."""
    FOLDER.mkdir(exist_ok=True)
    soundfile.write(FOLDER / "speech.wav", _voice(1, 1.0, 120.0, RATE), RATE, subtype="PCM_16")
    soundfile.write(FOLDER / "short.wav", _voice(2, 0.5, 210.0, RATE), RATE, subtype="PCM_16")
    stereo = np.stack([_voice(3, 0.7, 90.0, 44_100), _voice(4, 0.7, 330.0, 44_100)], axis=1)
    soundfile.write(FOLDER / "stereo.flac", stereo, 44_100, subtype="PCM_16")
    soundfile.write(FOLDER / "noisy.wav", _voice(5, 0.8, 160.0, 8_000, noise=0.3), 8_000, subtype="PCM_16")
    for seed, (seconds, pitch, noise) in enumerate(
        ((0.3, 250.0, 0.0), (0.6, 100.0, 0.05), (0.9, 180.0, 0.2), (1.3, 140.0, 0.02), (1.8, 300.0, 0.1)), 11
    ):
        voice = _voice(seed, seconds, pitch, RATE, noise)
        soundfile.write(CALIBRATION / f"voice-{seed}.flac", voice, RATE, subtype="PCM_16")


def _voice(seed: int, seconds: float, pitch: float, rate: int, noise: float = 0.02) -> NDArray[Any]:
    chance = np.random.default_rng(seed)
    count = int(seconds * rate)
    syllables = max(2, int(seconds * 4))
    sound = np.zeros(count)
    for start, end in zip(
        np.linspace(0, count, syllables + 1)[:-1].astype(int),
        np.linspace(0, count, syllables + 1)[1:].astype(int),
        strict=True,
    ):
        length = end - start
        glide = pitch * chance.uniform(0.8, 1.25) * np.linspace(1.0, chance.uniform(0.8, 1.2), length)
        phase = 2 * np.pi * np.cumsum(glide) / rate
        formants = chance.uniform(300, 900), chance.uniform(1000, 2800)
        tone = np.zeros(length)
        for harmonic in range(1, 20):
            at = harmonic * pitch
            if at < rate / 2:
                strength = sum(np.exp(-(((at - formant) / 250) ** 2)) for formant in formants) + 0.03
                tone += strength * np.sin(harmonic * phase)
        envelope = np.sin(np.pi * np.linspace(0, 1, length)) ** 0.6 * chance.uniform(0.4, 1.0)
        sound[start:end] = tone * envelope
        if chance.random() < 0.5:
            burst = min(length // 4, rate // 25)
            sound[start : start + burst] += chance.normal(0, 0.8, burst)
    sound += chance.normal(0, noise, count)
    softer: NDArray[Any] = 0.5 * sound / np.abs(sound).max()
    return softer


if __name__ == "__main__":
    main()
