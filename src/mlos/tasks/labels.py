"""A classifier's labels and how its logits become their scores, as a package declares them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.errors import RefusedError
from mlos.model import Manifest
from mlos.tasks.scores import SCORES

OUTPUT = "logits"


class Labels:
    """The labels in the order of the model's ``logits``, and their scores.

    It reads from the task's ``options``: ``labels`` (a list of names) and, unless ``scores`` is given here,
    ``scores`` (``softmax``, ``sigmoid`` or ``none``). ``axis`` of the logits is the labels';
    ``beside`` of them, the last, stand for no label.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        manifest: Manifest,
        task: str,
        scores: str | None = None,
        axis: int = -1,
        beside: int = 0,
    ) -> None:
        names, scores = options.get("labels"), scores or options.get("scores")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RefusedError(
                f"the package names no labels for the task {task}",
                field=f"preprocessing.{task}.labels",
                expected="a list of names",
                got=f"{names!r:.100}",
            )
        if not isinstance(scores, str) or scores not in SCORES:
            raise RefusedError(
                "the package does not say how logits become scores",
                field=f"preprocessing.{task}.scores",
                expected=", ".join(SCORES),
                got=repr(scores),
            )
        shapes = {spec.name: spec.shape for spec in manifest.artifact.outputs}
        if shapes.get(OUTPUT, ())[axis:][:1] != (len(names) + beside,):
            raise RefusedError(
                f"the model's {OUTPUT} are not as many as its labels",
                field=OUTPUT,
                expected=f"{'a last axis' if axis == -1 else f'axis {axis}'} of {len(names) + beside}",
                got=str(list(shapes.get(OUTPUT, ()))),
            )
        self.names: list[str] = names
        self.scores = SCORES[scores]

    def ranking(self, logits: NDArray[Any], top_k: int) -> list[dict[str, Any]]:
        """The ``top_k`` best of one vector of logits, as ``{"label", "score"}``, best first."""
        scores = self.scores(logits)
        best = np.argsort(-scores, kind="stable")[:top_k].tolist()
        return [{"label": self.names[number], "score": float(scores[number])} for number in best]
