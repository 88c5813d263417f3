"""PyTorch's pickled files: recognised, never opened.

A pickle is a program (https://docs.python.org/3/library/pickle.html warns so): loading one runs what its author
wrote. So these files are detected, by their first bytes or by what their suffix says, and always refused.
"""

from __future__ import annotations

from pathlib import Path

from mlos.errors import RefusedError
from mlos.formats.source import Source

SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""What such files are called; any of them whose content is of no known format is taken for one."""
_PROTOCOLS = range(2, 6)
_ZIP, _ZIP_END = b"PK\x03\x04", 1 << 16
_TAR_MEMBERS = (b"sys_info\0", b"pickle\0", b"storages\0", b"tensors\0")


def detect(source: Source) -> bool:
    """Whether the file is a pickle by content.

    That is: the pickle opcode ``PROTO`` with a protocol that has it (PyTorch before 1.6 starts so), a zip
    archive that names a ``data.pkl`` or another pickle (PyTorch since 1.6, and TorchScript), or a tar archive
    of the parts that PyTorch 0.1 wrote. A pickle of protocol 0 or 1 has no mark to know it by.
    """
    head = source.head(1024)
    if head[:1] == b"\x80" and len(head) > 2 and head[1] in _PROTOCOLS:
        return True
    if head.startswith(_ZIP):
        # The directory of a zip archive stands at its end; the first entry's name near its start.
        end = min(source.size, _ZIP_END)
        return b".pkl" in head or b".pkl" in source.read(source.size - end, end, "the archive's directory")
    return head[257:262] == b"ustar" and head.removeprefix(b"./").startswith(_TAR_MEMBERS)


def refusal(path: Path, name: str | None = None) -> RefusedError:
    """The refusal of such a file; it is returned, for the caller to raise."""
    with Source(path, name) as source:
        return source.refused(
            "it is a pickle, which can run any code when it is loaded",
            "a SafeTensors, ONNX or GGUF file",
            "a PyTorch pickle",
            "ask the author for model.safetensors, or convert it on a machine you can lose: "
            "safetensors.torch.save_model",
        )
