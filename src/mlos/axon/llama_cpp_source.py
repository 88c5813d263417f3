"""What llama.cpp's source package has beside the bindings: its converter to GGUF, and a reader of GGUF files.

The distribution ``llama-cpp-converter`` carries these files as they are; ``scripts/native.py`` makes it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from mlos.errors import MissingExtraError

DISTRIBUTION = "llama-cpp-converter"
_PACKAGE = "llama_cpp_converter"


def converter_folder() -> Path:
    """The folder of llama.cpp's ``convert_hf_to_gguf.py`` and its parts.

    Raises:
        MissingExtraError: if they are not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise MissingExtraError(
            "making GGUF files needs llama.cpp's own converter, which is not installed",
            field=DISTRIBUTION,
            hint="run `make setup` in a checkout of MLOS, or `python scripts/native.py` with the Python that "
            "shall have it",
        )
    return Path(found.origin).parent


def gguf() -> ModuleType:
    """llama.cpp's own package ``gguf``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    path = str(converter_folder() / "gguf-py")
    if path not in sys.path:
        sys.path.insert(0, path)
    return importlib.import_module("gguf")
