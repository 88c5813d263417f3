"""Keeps a library from leaving its own alternate signal stack behind on our thread (sigaltstack(2))."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """``stack_t``."""

    _fields_ = (("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def kept() -> Iterator[None]:
    """Around calls of a library: this thread's alternate signal stack is afterwards what it was before.

    One that the library frees later would be written to by the next signal, which ends the process.
    """
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
