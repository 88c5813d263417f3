"""Test data that a publisher put beside an ONNX file becomes its golden record.

The ONNX Model Zoo's convention (https://github.com/onnx/models): ``test_data_set_N/input_M.pb`` and
``output_M.pb``, each one ``TensorProto``, are what the model was asked and what the publisher's own framework
answered. These are a stranger's bytes: a confined child reads them, with the library of the format.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlos.axon.draft import Draft
from mlos.axon.sources.selection import is_test_data
from mlos.console import Console
from mlos.errors import CorruptError, MissingExtraError, RefusedError
from mlos.host.child import run_confined
from mlos.host.sandbox import Policy
from mlos.parity import Tolerance
from mlos.parity.record import RECORD, TENSORS

GOLDEN = "golden"
MAX_BYTES = 1 << 28
"""Of all test data of a model together; the largest of the Model Zoo's have some 50 MB."""
_CHILD = "mlos.axon.zoo_child"
_TIMEOUT = 300.0  # seconds; the Model Zoo's largest take two
_GIB = 1 << 30


def with_test_data(draft: Draft, source: Path, folder: Path, tolerance: Tolerance, console: Console) -> Draft:
    """``draft`` with a golden record in ``folder``, made of the test data in ``source``.

    It is the draft as it was where there is no test data, or such that it proves nothing: one set alone, or
    answers that the row ``tolerance`` could not tell apart. The latter is said.

    Raises:
        MissingExtraError: if the format's library is not installed.
        CorruptError: if a file is damaged, or is no tensor of this graph.
        RefusedError: if there is too much of it, or a tensor lies outside its file.
    """
    files = [path for path in source.rglob("*.pb") if is_test_data(path.relative_to(source).as_posix())]
    if not files or draft.artifact.format != "onnx":
        return draft
    if importlib.util.find_spec("onnx") is None:
        raise MissingExtraError.of("convert", "reading the test data beside an ONNX file")
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise RefusedError(
            "the test data beside the model is too large",
            field="test_data",
            expected=f"at most {MAX_BYTES} bytes",
            got=f"{size} bytes",
            hint="install a copy of the folder without some of its test_data_set_N",
        )
    policy = Policy(
        read=(source,),
        write=(folder,),
        memory_bytes=16 * size + 2 * _GIB,
        cpu_seconds=int(_TIMEOUT),
        file_bytes=4 * size + (16 << 20),
        open_files=256,
    )
    request: dict[str, Any] = {
        "sets": sorted({path.parent for path in files}, key=lambda path: (len(path.name), path.name)),
        "artifact": draft.artifact.model_dump(mode="json"),
        "tolerance": tolerance.name,
        "output": folder.absolute() / GOLDEN,
    }
    with console.step("read test data"):
        answer = run_confined(_CHILD, request, policy, timeout=_TIMEOUT)
    if answer.get("reason") is not None:
        console.note(f"no reference: {str(answer['reason'])[:300]}")
        return draft
    written = [f"{GOLDEN}/{name}" for name in (RECORD, TENSORS)]
    for path in written:
        if (folder / path).is_symlink() or not (folder / path).is_file():
            raise CorruptError("the reader of test data wrote no golden record", field=path)
    return replace(draft, roles={**draft.roles, **dict.fromkeys(written, "golden")})
