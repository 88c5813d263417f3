"""What memory a model takes in its framework: asked before the work begins, not found out in its midst."""

from __future__ import annotations

from mlos.errors import NoRoomError
from mlos.host.cgroup import available_memory

_LIBRARIES = 1 << 30
"""The framework itself, and what it computes for texts of a few lines."""


def framework_memory(parameters: int) -> int:
    """Bytes that a model of so many parameters takes in its framework at least.

    It is computed in fp32, four bytes each. While it is made, its largest tensor is there twice: up to an
    eighth of a language model, whose vocabulary is large.
    """
    return parameters * 9 // 2 + _LIBRARIES


def require_memory(parameters: int, model: str) -> None:
    """Raise :class:`NoRoomError`, naming both amounts, unless ``model`` fits into the memory there is now."""
    needed, available = framework_memory(parameters), available_memory()
    if needed > available:
        raise NoRoomError(
            f"packaging {model} needs {needed} bytes of memory, for {parameters} parameters in its framework, "
            f"and {available} are available",
            expected=f"{needed} bytes",
            got=f"{available} bytes",
            hint="end other programs or take a larger machine; a GGUF or ONNX file needs no framework: "
            "axon install file:PATH",
        )
