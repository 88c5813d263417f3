"""A small corpus on which models that embed texts are measured at retrieval: the reader of its file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_GRADES = (("answer", 2), ("related", 1), ("near", 0))


@dataclass(frozen=True)
class Passage:
    """A text to be found, the topic it was written for, and how relevant it is to its query: 0 to 2."""

    text: str
    topic: int
    grade: int


@dataclass(frozen=True)
class Retrieval:
    """Queries, and passages among which each query's are to be found; ``topic`` counts the queries from 0."""

    queries: tuple[str, ...]
    passages: tuple[Passage, ...]

    def relevance(self, query: int) -> list[int]:
        """How relevant each passage is to a query; one written for another topic is not."""
        return [passage.grade if passage.topic == query else 0 for passage in self.passages]


@cache
def retrieval() -> Retrieval:
    """The corpus that comes with MLOS."""
    topics = tomllib.loads((Path(__file__).parent / "retrieval.toml").read_text(encoding="utf-8"))["topic"]
    return Retrieval(
        tuple(topic["query"] for topic in topics),
        tuple(
            Passage(topic[kind], number, grade)
            for number, topic in enumerate(topics)
            for kind, grade in _GRADES
        ),
    )
