"""The child of :mod:`mlos.axon.pickles`: reads pickled tensors with torch, writes them as SafeTensors.

torch's unpickler makes tensors out of what the pickle says of their storages, which may lie. So an archive must
be stored uncompressed, every tensor must lie within its storage, and no storage may be larger than a record of
the file. Each tensor is written with bytes of its own: names that share a storage (tied weights) become copies,
which the framework ties again.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mlos.axon.sources.selection import PICKLE_INDEX
from mlos.errors import CorruptError, RefusedError
from mlos.host.child import Emit, serve

_NESTED = "state_dict"
"""Where checkpoints of a training keep the weights, beside the optimiser's and others."""
_TIED = 4
"""Most bytes written per byte read: tied weights are written once for each name."""


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Read ``request["files"]`` of the folder ``source``, write the file ``output``."""
    torch.set_num_threads(1)
    source = Path(request["source"])
    tensors: dict[str, torch.Tensor] = {}
    for name in request["files"]:
        for key, tensor in _read(source / name).items():
            if key in tensors:
                raise CorruptError(f"{name}: tensor {key!r} stands in another file too", field=name)
            tensors[key] = tensor
    _check_index(source / PICKLE_INDEX, tensors)
    if not tensors:
        raise RefusedError(f"{request['files'][0]} holds no tensors", field=request["files"][0])
    size = sum((source / name).stat().st_size for name in request["files"])
    wanted = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if wanted > _TIED * size:
        raise RefusedError(
            f"the tensors of {request['files'][0]} would be far larger than the file",
            expected=f"at most {_TIED * size} bytes",
            got=f"{wanted} bytes",
        )
    own = {key: tensors[key].detach().clone(memory_format=torch.contiguous_format) for key in sorted(tensors)}
    save_file(own, request["output"], {"format": "pt"})
    return {"torch": torch.__version__}


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one pickle, checked."""
    archive = zipfile.is_zipfile(path)
    records = _records(path) if archive else set()
    try:
        # A mapped file's storages cannot be resized, which is what torch does where a tensor is out of range.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # what it raises on a hostile file is as various as such files are
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise _refused(path, f"torch reads no weights from it: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get(_NESTED), Mapping):
        loaded = loaded[_NESTED]
    if not isinstance(loaded, Mapping):
        raise _refused(path, f"it holds a {type(loaded).__name__}")
    storages: dict[int, int] = {}
    for key, tensor in loaded.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise _refused(path, f"it holds a {type(tensor).__name__} under {str(key)[:80]!r}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise _refused(path, f"tensor {key[:80]!r} is no plain one")
        storage = tensor.untyped_storage()
        if tensor.numel():
            last = sum((axis - 1) * step for axis, step in zip(tensor.shape, tensor.stride(), strict=True))
            end = (tensor.storage_offset() + last + 1) * tensor.element_size()
            if end > storage.nbytes() or tensor.numel() * tensor.element_size() > storage.nbytes():
                raise _refused(path, f"tensor {key[:80]!r} is larger than its storage")
        if archive and storage.nbytes() not in records:
            raise _refused(path, f"the storage of tensor {key[:80]!r} is no record of the archive")
        storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > path.stat().st_size:
        raise _refused(path, "its storages are larger than the file")
    return dict(loaded)


def _records(path: Path) -> set[int]:
    """Sizes of an archive's members, none of which may be compressed: torch compresses none."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _refused(path, f"its archive is damaged: {error}") from error
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise _refused(path, "its archive is compressed, which torch never does")
    return {member.file_size for member in members}


def _check_index(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Each tensor that the index of shards names must have come."""
    if not path.is_file():
        return
    try:
        named = set(json.loads(path.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"{path.name} is no index: {error}", field=path.name) from error
    missing = sorted(str(name) for name in named if name not in tensors)
    if missing:
        raise CorruptError(
            f"{path.name} names the tensor {missing[0]!r}, which no shard holds",
            field=path.name,
            hint="fetch the whole repository again",
        )


def _refused(path: Path, problem: str) -> RefusedError:
    return RefusedError(
        f"{path.name} is not taken: {problem}",
        field=path.name,
        expected="a pickle of named tensors alone",
        hint="ask its publisher for model.safetensors",
    )


if __name__ == "__main__":
    serve(main)
