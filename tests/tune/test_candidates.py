"""What is timed for a model: every engine that opens it, and its other forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.core import packages

from mlos.store import Package, Store
from mlos.tune import candidates as module
from mlos.tune.candidates import candidates


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return packages.double(Store(tmp_path / "store"))


@pytest.fixture
def program(package: Package) -> Package:
    """Its form that torch computes."""
    manifest = package.manifest
    artifact = manifest.artifact.model_copy(update={"format": "pt2", "path": "model.pt2"})
    changed = {"artifact": artifact, "variant_of": package.digest}
    variant = manifest.model_copy(update=changed)
    return replace(package, manifest=variant, digest=variant.digest)


def test_a_program_of_torch_is_a_candidate_in_fp32(package: Package, program: Package) -> None:
    for precision in ("fp32", "auto"):
        found = candidates(package, [program], precision, 2)
        assert [str(each) for each in found if each.digest == program.digest] == ["torch fp32, 2 threads"]
    assert candidates(package, [program], "int8", 2) == candidates(package, [], "int8", 2)


def test_no_candidate_is_of_an_engine_that_is_not_installed(
    package: Package, program: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed", lambda: {"onnxruntime": "1", "openvino": "1"})
    assert {each.engine for each in candidates(package, [program], "fp32", 1)} == {"onnxruntime", "openvino"}
