"""A golden record small enough to read: two features, three classes, one padded text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlos.model import InferenceRequest
from mlos.parity import Case, GoldenRecord


def floats(*rows: Any) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


@pytest.fixture
def golden() -> GoldenRecord:
    one = Case(
        name="one text",
        request=InferenceRequest(text="a b"),
        task="embeddings",
        inputs={"input_ids": np.array([[5, 6]]), "attention_mask": np.array([[1, 1]])},
        outputs={
            "logits": floats([[4, 1, 0], [0, 3, 1]]),
            "last_hidden_state": floats([[1, -1], [0.5, 2]]),
        },
        result={"embedding": [0.75, 0.5], "dimensions": 2},
    )
    two = Case(
        name="padded batch",
        request=InferenceRequest(texts=["a b c", "d"], parameters={"normalize": True}),
        task="embeddings",
        inputs={
            "input_ids": np.array([[5, 6, 7], [8, 0, 0]]),
            "attention_mask": np.array([[1, 1, 1], [1, 0, 0]]),
        },
        outputs={
            "logits": floats([[4, 1, 0], [0, 3, 1], [1, 0, 5]], [[0, 2, 1], [9, 0, 0], [9, 0, 0]]),
            "last_hidden_state": floats([[1, -1], [0.5, 2], [3, 3]], [[-2, 4], [0, 0], [0, 0]]),
        },
        result=[{"embedding": [0.6, 0.8], "dimensions": 2}, {"embedding": [-0.6, 0.8], "dimensions": 2}],
    )
    return GoldenRecord((one, two), {"torch": "2"})
