"""GGUF files: written by llama.cpp's own converter, and quantized by its library.

Both run in this process, which is confined: they start no program and need no network.
"""

from __future__ import annotations

import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers

from mlos.axon.llama_cpp_source import converter_folder
from mlos.engines.llama_cpp_library import hearing, library, reason
from mlos.errors import MlosError, RefusedError
from mlos.formats import verify
from mlos.host.environment import usable_cores

WRITTEN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
"""Precisions that the converter writes, and what it calls them."""
QUANTIZED = {"Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15}
"""Precisions made of another file, by the library's number of them."""
_TENSOR = re.compile(r"\[\s*\d+/\s*(\d+)\]")
"""How the library announces each tensor that it quantizes."""

Advance = Callable[[int], None]


def converts(architecture: str) -> bool:
    """Whether llama.cpp's converter knows this class of transformers as a model of texts.

    Raises:
        MissingExtraError: if the converter is not installed.
    """
    return architecture in _converter("conversion").TEXT_MODEL_MAP


def write_gguf(source: Path, target: Path, precision: str, name: str) -> None:
    """Write the repository in ``source`` as the GGUF file ``target``; its metadata says ``name``.

    The converter reads facts from the name of the folder; it is shown one of the same name always.

    Raises:
        RefusedError: if the converter refuses the repository, or writes a file that llama.cpp cannot open: of
            that, the library would abort.
        MissingExtraError: if it is not installed.
    """
    command = _converter("convert_hf_to_gguf")
    before = sys.argv
    try:
        with tempfile.TemporaryDirectory() as folder:
            shown = Path(folder) / "model"
            shown.symlink_to(source.absolute())
            options = ("--outtype", WRITTEN[precision], "--outfile", str(target), "--model-name", name)
            sys.argv = ["convert_hf_to_gguf.py", *options, str(shown)]
            with _no_remote_code():
                command.main()
    except (NotImplementedError, ValueError, LookupError, AssertionError, OSError, SystemExit) as error:
        # How the converter says that it does not know something.
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RefusedError(f"llama.cpp's converter refuses the repository: {words}") from error
    finally:
        sys.argv = before
    verify(target)


@contextmanager
def _no_remote_code() -> Iterator[None]:
    """Let the converter, which trusts the code of repositories, load none of it."""
    kinds = (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoProcessor)
    loaders = {kind: kind.from_pretrained for kind in kinds}

    def safely(load: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: load(*arguments, **{**options, "trust_remote_code": False})

    try:
        for kind, load in loaders.items():
            setattr(kind, "from_pretrained", safely(load))  # noqa: B010  (mypy forbids it written plainly)
        yield
    finally:
        for kind, load in loaders.items():
            setattr(kind, "from_pretrained", load)  # noqa: B010  (likewise)


def quantize(source: Path, target: Path, precision: str, expect: Advance, advance: Advance) -> None:
    """Write the GGUF file ``source`` in another precision; ``expect`` is told the number of tensors, once.

    Raises:
        RefusedError: if the library refuses.
    """
    api = library()
    options = api.llama_model_quantize_default_params()
    options.nthread = usable_cores()
    options.ftype = QUANTIZED[precision]
    told = False

    def hear(line: str) -> None:
        nonlocal told
        found = _TENSOR.match(line)
        if found is None:
            return
        if not told:
            told = True
            expect(int(found[1]))
        advance(1)

    with hearing(hear):
        status = api.llama_model_quantize(str(source).encode(), str(target).encode(), options)
    if status != 0:
        raise RefusedError(f"llama.cpp cannot make {precision} of the model: {reason('it does not say why')}")


def _converter(module: str) -> Any:
    folder = str(converter_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MlosError(f"llama.cpp's converter cannot be loaded: {error}") from error
