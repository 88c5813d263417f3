"""A child that prepares image files and says of each what came of it, and by how much its memory grew."""

from __future__ import annotations

import io
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlos.errors import MlosError
from mlos.host.child import Emit, serve
from mlos.model import Manifest
from mlos.tasks import Limits
from mlos.tasks.images import ImageEncoder


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Poison comes first: the peak of memory only ever rises."""
    said = sys.stderr = io.StringIO()
    encoder = ImageEncoder(Manifest.model_validate(request["manifest"]), "image-classification", Limits())
    usual = io.BytesIO()
    Image.new("RGB", (2000, 1500)).save(usual, "PNG")
    encoder.encode([usual.getvalue()], "image")
    found: dict[str, Any] = {}
    for number, name in enumerate(request["names"]):
        content = (Path(request["folder"]) / str(number)).read_bytes()
        before = _peak()
        try:
            pixels = encoder.encode([content], "image")["pixel_values"]
            found[name] = {"code": None, "sum": float(pixels.sum(dtype=np.float64))}
        except MlosError as error:
            found[name] = error.as_dict() | {"http_status": error.http_status}
        found[name]["grown_bytes"] = _peak() - before
    return {"found": found, "stderr": said.getvalue()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    serve(main)
