"""What a run has found so far, kept beside its results, so that a run that was killed goes on where it was.

One file for each plan on each host: its first line says what the run is, each further line holds a finished
row. A line that a kill cut off is dropped, and its model validated again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from mlos.validation.plan import PlannedModel
from mlos.validation.results import Row


@dataclass
class Journal:
    """An unfinished run: when it began, the seed of its load, and the rows that are done."""

    path: Path
    started: datetime
    seed: int
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(
        cls, folder: Path, planned: Sequence[PlannedModel], identity: dict[str, Any], seed: int, *, fresh: bool
    ) -> Self:
        """The journal in ``folder`` of the unfinished run of the same plan, or a new one.

        ``identity`` is what two runs must share for the rows of one to stand in the other: the host, the
        tier, the versions. A run that goes on keeps the seed that it began with. ``fresh`` drops what was
        found.
        """
        terms = {"plan": [one.as_dict() for one in planned], **identity}
        key = hashlib.sha256(json.dumps(terms, sort_keys=True, default=str).encode()).hexdigest()[:12]
        path = folder / f".unfinished-{key}.jsonl"
        found = None if fresh else cls._read(path, [one.name for one in planned])
        if found is not None:
            return found
        journal = cls(path, datetime.now(UTC), seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"started": journal.started.isoformat(), "seed": seed}
        path.write_text(json.dumps(head) + "\n", encoding="utf-8")
        return journal

    @classmethod
    def _read(cls, path: Path, names: list[str]) -> Self | None:
        try:
            head, *lines = path.read_bytes().splitlines()
            told = json.loads(head)
            journal = cls(path, datetime.fromisoformat(told["started"]), int(told["seed"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # there is none, or nothing of it is whole
        for line, name in zip(lines, names, strict=False):
            try:
                row = Row.model_validate_json(line)
            except ValidationError:
                break
            if row.name != name:
                break
            journal.rows.append(row)
        # What follows a broken line is dropped from the file as well.
        path.write_bytes(b"\n".join([head, *lines[: len(journal.rows)]]) + b"\n")
        return journal

    def add(self, row: Row) -> None:
        """Keep a finished row: it is on the disk when this returns."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(row.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """The run is complete: its results hold everything."""
        self.path.unlink(missing_ok=True)
