"""llama.cpp's library: loaded once, kept quiet, and its models freed with the objects that stand for them."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mlos.engines.openmp import sleep_soon
from mlos.errors import MissingExtraError, RefusedError, WorkerError

_WARNING, _ERROR = 3, 4
"""Levels of the library's messages that say what went wrong (``ggml.h``)."""
_KEPT = 3
_messages: list[str] = []
"""The last errors the library told of: it returns none, it only says them."""
_listeners: list[Callable[[str], None]] = []


@cache
def library() -> Any:
    """The bindings of llama.cpp's C interface; what it says is kept for :func:`reason`, not printed.

    Raises:
        MissingExtraError: if they are not installed.
    """
    sleep_soon()
    try:
        from llama_cpp import llama_cpp
    except ImportError as error:
        raise MissingExtraError.of("llama", "running GGUF models") from error
    llama_cpp.llama_log_set(_log(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache  # the library keeps no reference to it
def _log(api: Any) -> Any:
    def heard(level: int, text: bytes, _: Any) -> None:
        line = " ".join(text.decode(errors="replace").split())
        for listener in _listeners:
            listener(line)
        if level in (_WARNING, _ERROR) and line:
            _messages[:] = [*_messages[1 - _KEPT :], line]

    return api.llama_log_callback(heard)


@contextmanager
def hearing(listener: Callable[[str], None]) -> Iterator[None]:
    """Let ``listener`` have each line that the library says meanwhile."""
    forget()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def forget() -> None:
    """Forget what the library has said, before something is tried."""
    _messages.clear()


def reason(otherwise: str) -> str:
    """What the library said since, as one line; ``otherwise`` if nothing."""
    text = "; ".join(dict.fromkeys(_messages)) or otherwise
    return text if len(text) <= 300 else text[:300] + "…"


def version() -> str:
    """Version of the bindings, which names that of the library."""
    library()
    import llama_cpp

    return str(llama_cpp.__version__)


class Model:
    """A loaded GGUF file. ``pointer`` is the library's, ``vocabulary`` its vocabulary."""

    def __init__(self, path: Path, *, vocabulary_only: bool = False) -> None:
        """Load the file, or of it the vocabulary alone.

        Raises:
            RefusedError: if the library cannot.
        """
        api = library()
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        options.vocab_only = vocabulary_only
        forget()
        self.pointer = api.llama_model_load_from_file(str(path).encode(), options)
        if not self.pointer:
            raise RefusedError(
                f"llama.cpp cannot load {path.name}: {reason('it does not say why')}", field=path.name
            )
        weakref.finalize(self, api.llama_model_free, self.pointer)
        self.vocabulary = api.llama_model_get_vocab(self.pointer)

    @property
    def size(self) -> int:
        """Tokens in the vocabulary."""
        return int(library().llama_vocab_n_tokens(self.vocabulary))

    def text(self, key: str) -> str | None:
        """The text that the file's metadata has under ``key``."""
        api, name = library(), key.encode()
        length = api.llama_model_meta_val_str(self.pointer, name, ctypes.create_string_buffer(1), 1)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        api.llama_model_meta_val_str(self.pointer, name, buffer, length + 1)
        return buffer.value.decode(errors="replace")


def open_context(model: Model, options: Any, length: int) -> Any:
    """A pointer to a context of ``model`` with ``options``, to be freed by who asked.

    Raises:
        WorkerError: if there is no room for its ``length`` tokens.
    """
    forget()
    pointer = library().llama_init_from_model(model.pointer, options)
    if not pointer:
        raise WorkerError(
            f"llama.cpp has no room for {length} tokens: {reason('it does not say why')}",
            hint="the machine may be short of memory",
        )
    return pointer
