"""What a variant of trained weights does at its task, beside the original.

With seeded weights a variant's error is numerical only, and nothing is called quality.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlos.console import Console
from mlos.errors import CorruptError
from mlos.host.child import run_confined
from mlos.host.environment import usable_cores
from mlos.host.sandbox import Policy
from mlos.model import Manifest, QualityMeasure
from mlos.store import Package

TASK = "embeddings"
_CHILD = "mlos.axon.variants.quality_child"
_TIMEOUT = 900.0  # seconds
_GIB = 1 << 30
_MEASURES = TypeAdapter(tuple[QualityMeasure, ...])


def measured(
    original: Package, variant: Manifest, folder: Path, console: Console
) -> tuple[QualityMeasure, ...]:
    """Measure the variant, its files in ``folder``, and its original at what they do.

    Models that embed texts are measured at retrieval on the catalogue's corpus. Nothing is measured of seeded
    weights, nor of other tasks.
    """
    if variant.weights == "seeded" or TASK not in variant.tasks:
        return ()
    policy = Policy(
        read=(original.folder, folder),
        memory_bytes=4 * (original.manifest.size + variant.size) + 4 * _GIB,
        file_bytes=0,
        open_files=256,
    )
    request: dict[str, Any] = {
        "models": [
            {"folder": str(place.absolute()), "manifest": manifest.model_dump(mode="json")}
            for place, manifest in ((original.folder, original.manifest), (folder, variant))
        ],
        "threads": usable_cores(),
    }
    with console.step("retrieval"):
        answer = run_confined(_CHILD, request, policy, timeout=_TIMEOUT)
    try:
        return _MEASURES.validate_python(answer.get("measures"))
    except ValidationError as error:
        raise CorruptError(f"the measure of quality is malformed: {error.errors()[0]['msg']}") from error
