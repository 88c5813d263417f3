"""How the threads of OpenMP wait, in the libraries that compute with them."""

from __future__ import annotations

import os

_SPIN = "1000"
"""How often a thread looks again before it sleeps: some microseconds, enough for the waits within a token. By
its default it spins for milliseconds, which slows whatever else wants the processor, and the model itself where
that is busy. A token of a billion parameters took llama.cpp, on two cores of a Zen 3 that were free, and beside
a process that kept one busy: 35 and 74 to 182 ms by the default, 39 and 81 like this, 46 and 76 with 300 looks,
38 and 96 with 2000."""


def sleep_soon() -> None:
    """Let threads that wait sleep soon. It is read when a library is loaded, so this comes before."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN)
