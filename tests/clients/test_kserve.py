"""KServe's own client, over REST and gRPC, gets right numbers and errors that say what is wrong."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.clients.environments import environment
from tests.core.conftest import Server
from tests.core.test_grpc import address

ASKING = Path(__file__).parent / "children" / "ask_kserve.py"
DOUBLED = {"model": "double", "name": "y", "type": "float32", "y": [[2.0, 4.0, 6.0], [9.0, -10.0, 12.0]]}


@pytest.fixture(scope="module")
def found(served: Server) -> Any:
    """All that the client was told, by protocol."""
    python = environment("kserve") / "bin" / "python"
    command: list[str | Path] = [python, "-P", ASKING, served.url, address(served)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow  # its environment takes minutes to make, the first time
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_kserves_client_gets_its_numbers(found: Any, protocol: str) -> None:
    told = found[protocol]
    assert (told["live"], told["ready"], told["model"]) == (True, True, True)
    assert told["json"] == told["binary"] == DOUBLED


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_kserves_client_is_told_what_is_wrong(found: Any, protocol: str) -> None:
    told = found[protocol]
    assert "nobody" in told["unknown"]
    assert ("404" if protocol == "rest" else "NOT_FOUND") in told["unknown"]
    assert "rows" in told["wrong"]
    assert ("400" if protocol == "rest" else "INVALID_ARGUMENT") in told["wrong"]
