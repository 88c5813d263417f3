"""Compile the .proto files of mlos.core.grpc into what it loads, with grpcio-tools (extra dev)."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

SOURCES = ("mlos/core/grpc/service.proto", "mlos/core/grpc/health.proto")


def compile_to(destination: Path, source: Path) -> None:
    """Write the descriptors of :data:`SOURCES` below ``source`` to ``destination``.

    Raises:
        SystemExit: if they cannot be compiled; the compiler has said why.
    """
    status = protoc.main(["protoc", f"-I{source}", f"--descriptor_set_out={destination}", *SOURCES])
    if status:
        sys.exit(status)


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent / "src"
    compile_to(root / "mlos/core/grpc/protocol.binpb", root)
