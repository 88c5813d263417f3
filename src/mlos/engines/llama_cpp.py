"""llama.cpp on the CPU: GGUF files."""

from __future__ import annotations

from typing import ClassVar

from mlos.model import ModelFormat


class LlamaCppEngine:
    """A GGUF file."""

    name: ClassVar[str] = "llama.cpp"
    formats: ClassVar[frozenset[ModelFormat]] = frozenset({"gguf"})
