"""Plug-ins for the runtime's tests, installed beside the real ones: a task that counts, slowly if asked to."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

COUNTING = """
import time
from dataclasses import dataclass

import numpy as np
from mlos.errors import InvalidInputError, WorkerError
from mlos.tasks import Prepared


@dataclass
class Counted:
    text: str
    tokens: dict
    finish_reason: str = "stop"


class Counting:
    name = "counting"

    def __init__(self, folder, manifest, limits):
        pass

    def accepts(self, request):
        return request.prompt is not None

    def preprocess(self, request):
        if not request.prompt.isdecimal():
            raise InvalidInputError("not a number", field="prompt", expected="a number", got=request.prompt)
        return Prepared({"x": np.ones((1, 3), np.float32)}, ("y",), (int(request.prompt), request.parameters))

    def compute(self, engine, prepared, stream):
        (upto, parameters), text = prepared.context, ""
        for number in range(upto):
            stream.check()
            if number == parameters.get("fail_at"):
                raise WorkerError("counted too far")
            stream.emit({"text": f"{number} "})
            text += f"{number} "
            time.sleep(parameters.get("pause", 0))
        return Counted(text, {"prompt": 1, "completion": upto}, parameters.get("finish", "stop"))

    def postprocess(self, prepared, computed):
        return {"text": computed.text, "finish_reason": "stop"}
"""


def install_counting(home: Path, name: str = "counting") -> None:
    """Make the task known to the servers that run with this home, under this name."""
    modules = home / "modules"
    described = modules / "counting-1.dist-info"
    described.mkdir(parents=True)
    (modules / "counting.py").write_text(COUNTING.replace('name = "counting"', f'name = "{name}"'))
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: counting\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.tasks.v1]\ncounting = counting:Counting\n")


def count_as(home: Path, name: str) -> None:
    """Put the counting task in the place of the built-in one of that name.

    Of two distributions of one name the first that is found counts, so a second ``mlos`` says it all again.
    """
    install_counting(home, name)
    said = distribution("mlos").read_text("entry_points.txt") or ""
    lines = [
        f"{name} = counting:Counting" if line.startswith(f"{name} =") else line for line in said.split("\n")
    ]
    described = home / "modules" / "mlos-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: mlos\nVersion: 0\n")
    (described / "entry_points.txt").write_text("\n".join(lines))
