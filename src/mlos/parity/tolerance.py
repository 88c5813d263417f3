"""How far an artifact's answers may stand from the framework's: one row per precision.

The rows are the project's measurement standard. Elementwise, a value passes when
``|error| <= atol + rtol * |reference|``; reduced precisions have no such bound and are held to the direction
of their answers (cosine) and to what they decide (argmax). Language models in GGUF are held to the distribution
of the next token: to the mean Kullback-Leibler divergence from the framework's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mlos.errors import UsageError
from mlos.model import Artifact


@dataclass(frozen=True)
class Tolerance:
    """One row. ``cosine`` is the least allowed, ``argmax`` the least share of equal decisions (0 to 1).

    ``kl_divergence`` is the most allowed, in nats. A cosine of -1 and a share of 0 bound nothing.
    """

    name: str
    atol: float | None
    rtol: float | None
    cosine: float
    argmax: float
    kl_divergence: float | None = None


REDUCED = frozenset({"fp16", "bf16", "int8"})
"""Precisions, of formats other than GGUF, that have a row of their own."""


def _divergence(name: str, most: float) -> Tolerance:
    return Tolerance(name, atol=None, rtol=None, cosine=-1.0, argmax=0.0, kl_divergence=most)


TOLERANCES: Mapping[str, Tolerance] = MappingProxyType(
    {
        row.name: row
        for row in (
            Tolerance("fp32", atol=1e-4, rtol=1e-3, cosine=0.9999, argmax=1.0),
            # Encoder-decoder and audio models: deeper sums, larger activations.
            Tolerance("fp32-wide", atol=1e-3, rtol=1e-3, cosine=0.9999, argmax=1.0),
            Tolerance("fp16", atol=None, rtol=None, cosine=0.999, argmax=0.995),
            Tolerance("bf16", atol=None, rtol=None, cosine=0.995, argmax=0.99),
            Tolerance("int8", atol=None, rtol=None, cosine=0.98, argmax=0.97),
            # Precisions of GGUF files, by the names that llama.cpp gives them.
            Tolerance("F32", atol=1e-4, rtol=1e-3, cosine=0.9999, argmax=1.0),
            _divergence("F16", 1e-4),
            _divergence("BF16", 1e-4),
            _divergence("Q8_0", 1e-3),
            _divergence("Q5_K_M", 1e-2),
            _divergence("Q4_K_M", 3e-2),
        )
    }
)


def tolerance_of(artifact: Artifact, named: str) -> Tolerance:
    """The row that ``artifact`` is held to: that of its own precision; at full precision the one ``named``.

    Raises:
        UsageError: if there is no such row.
    """
    own = artifact.format == "gguf" or artifact.precision in REDUCED
    return tolerance_named(artifact.precision if own else named)


def tolerance_named(name: str) -> Tolerance:
    """The row called ``name``.

    Raises:
        UsageError: if there is none.
    """
    if name not in TOLERANCES:
        raise UsageError(
            f"no tolerance is called {name!r}",
            field="tolerance",
            expected=", ".join(TOLERANCES),
            got=repr(name),
        )
    return TOLERANCES[name]
