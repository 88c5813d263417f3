"""What ONNX Runtime's engine holds beside what every engine for ONNX files does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from tests.engines.onnx_graphs import ARTIFACT, lookup

from mlos.engines import engine_for
from mlos.engines.onnxruntime import OnnxRuntimeEngine
from mlos.errors import RefusedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(lookup(), tmp_path / "model.onnx")
    return tmp_path


@pytest.fixture
def engine(folder: Path) -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine.open(folder, ARTIFACT, threads=1)


def test_it_is_the_engine_for_onnx() -> None:
    assert engine_for(ARTIFACT) is OnnxRuntimeEngine
    with pytest.raises(RefusedError, match="no installed engine opens pytorch") as caught:
        engine_for(ARTIFACT.model_copy(update={"format": "pytorch"}))
    assert caught.value.expected == "gguf, onnx, pt2"


def test_its_version_is_that_of_the_library(engine: OnnxRuntimeEngine) -> None:
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    assert engine.version == onnxruntime.__version__


def test_it_keeps_to_the_processor_and_its_threads_do_not_spin(folder: Path) -> None:
    session = OnnxRuntimeEngine.open(folder, ARTIFACT, threads=2)._session
    options = session.get_session_options()
    assert session.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.inter_op.allow_spinning") == "0"


def test_the_library_leaves_no_identifier_of_this_host(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from tests.engines.onnx_graphs import ARTIFACT\n"
        "from mlos.engines.onnxruntime import OnnxRuntimeEngine\n"
        f"OnnxRuntimeEngine.open(Path({str(folder)!r}), ARTIFACT, 1)\n"
        "time.sleep(0.5)  # it is written a little later\n"
    )
    places = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program], env=places, check=True, timeout=60)
    assert list(home.iterdir()) == []


def test_a_missing_library_is_named_with_its_command(tmp_path: Path) -> None:
    """In a process of its own, where the import of onnxruntime fails."""
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path\n"
        "from mlos.engines import engine_for\n"
        "from mlos.errors import MissingExtraError\n"
        "from mlos.model import Artifact\n"
        "artifact = Artifact(format='onnx', precision='fp32', path='m.onnx', inputs=(), outputs=())\n"
        "try:\n"
        f"    engine_for(artifact).open(Path({str(tmp_path)!r}), artifact, 1)\n"
        "except MissingExtraError as error:\n"
        "    print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "pip install 'mlos[onnxruntime]'"
