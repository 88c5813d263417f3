"""What a classifier's configuration says of its labels, by the rules that the framework's pipelines share."""

from __future__ import annotations

from typing import Any


def labels_of(config: Any) -> list[str]:
    """The labels in the order of the model's logits."""
    labels = config.id2label
    return [str(labels[number]) for number in range(len(labels))]


def scores_of(config: Any) -> str:
    """How logits become scores: ``softmax``, ``sigmoid`` or ``none``."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"
