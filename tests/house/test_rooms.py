"""The order of the rooms is enforced, not hoped for: each imports only from those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlos

SOURCE = Path(mlos.__file__).parent
ROOMS = (
    ("errors", "settings", "console"),
    ("model",),
    ("host",),
    ("formats",),
    ("store",),
    ("catalogue",),
    ("parity",),
    ("engines",),
    ("tasks",),
    ("tune",),
    ("accel",),
    ("axon",),
    ("core",),
    ("validation",),
    ("cluster",),
)
FLOOR = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
PROGRAMS = {"axon", "core"}
"""Upper rooms that speak to each other through their programs, never through imports."""


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, package: str) -> Iterator[str]:
    """Every module of ours that the file imports, at any depth of the file, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mlos."))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                yield f"{base}.{node.module}" if node.module else base
            elif node.module == "mlos":
                yield from (f"mlos.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("mlos."):
                yield node.module


def violations(path: Path, room: str, package: str) -> list[str]:
    found = []
    for module in imports(path, package):
        other = module.split(".")[1]
        if other.startswith("__"):
            continue
        upward = FLOOR[other] > FLOOR[room]
        across = other != room and (FLOOR[other] == FLOOR[room] > 0 or {other, room} == PROGRAMS)
        if upward or across:
            found.append(f"{path}: {room} imports {module}")
    return found


SOURCES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem in FLOOR)


def test_every_folder_is_a_known_room() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= FLOOR.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_from_rooms_below_it(path: Path) -> None:
    package = ".".join(("mlos", *path.parent.relative_to(SOURCE).parts))
    assert violations(path, room_of(path), package) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("model", "from mlos.store import Store"),
        ("store", "import mlos.core.cli"),
        ("formats", "from mlos import engines"),
        ("core", "from mlos.axon.install import install"),
        ("tasks", "def later():\n    from ..accel import channel"),
    ],
)
def test_the_rule_catches_an_import_that_breaks_it(tmp_path: Path, room: str, line: str) -> None:
    guilty = tmp_path / "guilty.py"
    guilty.write_text(line)
    assert len(violations(guilty, room, f"mlos.{room}")) == 1


def test_the_rule_lets_a_lawful_import_pass(tmp_path: Path) -> None:
    lawful = tmp_path / "lawful.py"
    lawful.write_text("from mlos import __version__\nfrom mlos.model import Manifest\nimport numpy")
    assert violations(lawful, "core", "mlos.core") == []
