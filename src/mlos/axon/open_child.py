"""The child of :func:`mlos.axon.prove.require_opening`: loads a package's file with its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlos.engines import open_model
from mlos.host.child import Emit, serve
from mlos.model import Artifact


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Open ``request["artifact"]`` in ``request["folder"]``."""
    open_model(Path(request["folder"]), Artifact.model_validate(request["artifact"]), 1)
    return {}


if __name__ == "__main__":
    serve(main)
