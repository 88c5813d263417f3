"""A run that is killed goes on where it was, with what it began with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlos.validation.journal import Journal
from mlos.validation.plan import PlannedModel
from mlos.validation.results import Row

TERMS = {"host": "here", "tier": "smoke"}


def planned(*names: str) -> tuple[PlannedModel, ...]:
    return tuple(PlannedModel(name, f"seeded/tiny/{name}", None, "a test", None) for name in names)


def row(name: str) -> Row:
    return Row(name=name, requested=f"seeded/tiny/{name}", status="passed", weights_reason="a test")


THREE = planned("a", "b", "c")


def test_what_was_found_is_there_when_the_run_goes_on(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, THREE, TERMS, 7, fresh=False)
    first.add(row("a"))
    first.add(row("b"))
    again = Journal.open(tmp_path, THREE, TERMS, 8, fresh=False)
    assert [each.name for each in again.rows] == ["a", "b"]
    assert (again.seed, again.started) == (7, first.started)


def test_a_row_cut_off_by_the_kill_is_validated_again(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, THREE, TERMS, 7, fresh=False)
    journal.add(row("a"))
    journal.add(row("b"))
    journal.path.write_bytes(journal.path.read_bytes()[:-20])
    again = Journal.open(tmp_path, THREE, TERMS, 7, fresh=False)
    assert [each.name for each in again.rows] == ["a"]
    again.add(row("b"))
    assert [each.name for each in Journal.open(tmp_path, THREE, TERMS, 7, fresh=False).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("models", "terms", "fresh"),
    [
        (planned("a", "b"), TERMS, False),
        (THREE, {**TERMS, "host": "there"}, False),
        (THREE, {**TERMS, "tier": "release"}, False),
        (THREE, TERMS, True),
    ],
)
def test_another_run_begins_anew(
    tmp_path: Path, models: tuple[PlannedModel, ...], terms: dict[str, str], fresh: bool
) -> None:
    Journal.open(tmp_path, THREE, TERMS, 7, fresh=False).add(row("a"))
    assert Journal.open(tmp_path, models, terms, 8, fresh=fresh).rows == []


def test_nothing_is_left_of_a_complete_run(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, THREE, TERMS, 7, fresh=False)
    journal.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"not a journal\n"])
def test_a_broken_journal_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    journal = Journal.open(tmp_path, THREE, TERMS, 7, fresh=False)
    journal.path.write_bytes(content)
    assert Journal.open(tmp_path, THREE, TERMS, 8, fresh=False).seed == 8
