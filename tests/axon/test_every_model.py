"""Every model of the catalogue, in its small variant: seeded, converted, and proved against its framework."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.small import Small

from mlos.catalogue import catalogue

SEEDED = [
    pytest.param(name, marks=[] if "default" in entry.sets else pytest.mark.slow)
    for name, entry in catalogue().entries.items()
    if entry.seeded
]
"""All of them; those outside the default set take their turn in `make test-slow`."""


@pytest.mark.parametrize("name", SEEDED)
def test_the_small_variant_is_proved(small: Small, tmp_path: Path, name: str) -> None:
    candidate = small.candidate(name, tmp_path / "candidate")
    measures = candidate.prove()
    assert measures
    assert all(measure.passed for measure in measures)
    assert candidate.converted.tasks == catalogue().entries[name].tasks
    assert candidate.converted.architecture == catalogue().entries[name].architecture
