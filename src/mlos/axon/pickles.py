"""Pickles become SafeTensors, where a person allowed it, in a confined child that is thrown away.

A pickle is a program. The child reads it with torch's unpickler for weights alone, which knows no program but
tensors, and where that fails too, the sandbox holds: no network, no programs, the repository read-only. What it
wrote is verified like any file that a stranger sent.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mlos.axon.sources.selection import PICKLE_INDEX, is_pickle
from mlos.console import Console
from mlos.errors import CorruptError, MissingExtraError
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy
from mlos.store import Store

WRITTEN = "model.safetensors"
_CHILD = "mlos.axon.pickles_child"
_TIMEOUT = 900.0  # seconds; reading and writing take as long as the disk does
_GIB = 1 << 30


def replace_pickles(folder: Path, store: Store, console: Console) -> dict[str, str]:
    """Put ``model.safetensors`` in the place of the pickled weights in ``folder``.

    Returns the versions of what read them, by name; nothing where there are no pickles.

    Raises:
        MissingExtraError: if torch is not installed.
        RefusedError: if a pickle holds anything but tensors, or is not what it says.
        CorruptError: if a tensor that the index names is missing.
    """
    pickles = sorted(path.name for path in folder.iterdir() if is_pickle(path.name))
    if not pickles:
        return {}
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError.of("convert", "reading a pickle")
    size = sum((folder / name).stat().st_size for name in pickles)
    with store.staging(size) as made, console.step("read pickles"):
        request = {"source": folder.absolute(), "files": pickles, "output": made.folder.absolute() / WRITTEN}
        answer = run_confined(_CHILD, request, policy_of(folder, made.folder, size), timeout=_TIMEOUT)
        written = made.folder / WRITTEN
        if written.is_symlink() or not written.is_file() or not isinstance(answer.get("torch"), str):
            raise CorruptError("the reader of pickles wrote no weights", field=WRITTEN)
        written.replace(folder / WRITTEN)
    for name in (*pickles, PICKLE_INDEX):
        (folder / name).unlink(missing_ok=True)
    return {"torch.load(weights_only=True)": answer["torch"]}


def policy_of(source: Path, output: Path, size: int) -> Policy:
    """What the child may do; ``size`` is that of the pickles, in bytes."""
    return Policy(
        read=(source,),
        write=(output,),
        memory_bytes=4 * size + 4 * _GIB,
        cpu_seconds=int(_TIMEOUT),
        file_bytes=4 * size + (16 << 20),
        open_files=256,
    )
