"""BentoML: a service with one method for tensors and one for texts."""

from __future__ import annotations

from typing import Any

import bentoml
from model_file import ModelFile, answer_of, tensors_of


@bentoml.service(
    workers=1,
    traffic={"timeout": 120},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Served:
    """The package's file."""

    def __init__(self) -> None:
        self._file = ModelFile()

    @bentoml.api(route="/infer")
    def infer(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Tensors; which outputs are wanted, the settings say."""
        return answer_of(self._file.run(tensors_of({"inputs": inputs})))

    @bentoml.api(route="/text")
    def text(self, text: str) -> dict[str, Any]:
        """A text to its embedding."""
        return {"embedding": self._file.embed([text])[0].tolist()}
