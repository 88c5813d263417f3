"""F10: a model file that is cut short under a running worker ends that worker alone, and it is said why."""

from __future__ import annotations

import os
from pathlib import Path

from tests.core import packages
from tests.core.conftest import Start

from mlos.store import Store

ROW = {"inputs": {"x": [[1, 2, 3]]}}
MAPPED = """
import numpy as np

class Mapped:
    name = "mapped"
    formats = frozenset({"pytorch"})
    version = "1"

    @classmethod
    def open(cls, folder, artifact, threads):
        self = cls()
        self.weights = np.memmap(folder / artifact.path, np.uint8, "r")  # as engines for large files do
        return self

    def run(self, inputs, outputs=None):
        return {"found": np.array([int(self.weights.sum())], np.int64)}
"""


def test_only_the_worker_of_a_truncated_file_dies_and_says_why(start: Start, store: Store, home: Path) -> None:
    modules = home / "modules"
    described = modules / "mapped-1.dist-info"
    described.mkdir(parents=True)
    (modules / "mapped.py").write_text(MAPPED)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: mapped\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.engines.v1]\nmapped = mapped:Mapped\n")
    package = packages.curious(store)
    packages.double(store)
    server = start()
    request = {"inputs": {"port": [1], "canary": [1]}}
    total = sum(package.path("model.onnx").read_bytes())
    assert server.infer("curious", request).json["result"] == {"found": [total]}
    assert server.infer("double", ROW).status == 200
    other = server.worker("double")
    package.path("model.onnx").chmod(0o644)
    os.truncate(package.path("model.onnx"), 0)
    answer = server.infer("curious", request)
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    # The one that takes its place looks at the file before it opens it.
    server.wait_for(lambda: server.row("curious")["state"] == "FAILED")
    reason = server.row("curious")["reason"]
    assert "model.onnx" in reason
    died = [line for line in server.lines() if line["message"] == "worker died"]
    assert [(line["model"], "SIGBUS" in line["reason"]) for line in died] == [("curious", True)]
    refused = server.infer("curious", request)
    assert refused.status >= 400
    assert "model.onnx" in refused.error["message"]
    assert server.infer("double", ROW).status == 200
    assert server.worker("double") == other
    assert server.get("/v2/health/ready").status == 200
