"""The one place from which the programs speak: data on stdout, everything else on stderr.

Commands hand over data and how a person would like to see it; they never print. Progress is drawn on a
terminal, is one line per step with ``plain``, one JSON object per line with ``json``, and is silent where
stderr is no terminal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NoReturn, Protocol, TextIO

import rich.progress
import typer
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape

from mlos.errors import MlosError

_WIDE = 250
"""Columns of a table that no terminal bounds."""


class OutputFormat(StrEnum):
    """How results are written to stdout."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class ProgressMode(StrEnum):
    """How progress is written to stderr."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


class Step(Protocol):
    """A running step whose progress is shown; amounts are in the step's own unit."""

    def advance(self, amount: float) -> None:
        """Say that ``amount`` more is done."""
        ...

    def expect(self, total: float) -> None:
        """Say how much there is to do in all."""
        ...


class Console:
    """Where a command's results, notes, warnings, progress and errors go."""

    def __init__(
        self, output: OutputFormat = OutputFormat.HUMAN, progress: ProgressMode = ProgressMode.AUTO
    ) -> None:
        self.output = output
        self._out, self._err = _plain_or_terminal(sys.stdout), _plain_or_terminal(sys.stderr)
        if progress is ProgressMode.AUTO and not self._err.is_terminal:
            progress = ProgressMode.NONE
        self._progress = progress

    def result(self, data: Any, human: Callable[[], RenderableType], brief: Iterable[str] = ()) -> None:
        """Write a command's result: ``data`` as JSON, ``human()`` for a person, ``brief`` lines when quiet."""
        match self.output:
            case OutputFormat.JSON:
                self._out.print(json.dumps(data, indent=2), markup=False, soft_wrap=True)
            case OutputFormat.QUIET:
                for line in brief:
                    self._out.print(line, markup=False, soft_wrap=True)
            case OutputFormat.HUMAN:
                self._out.print(human())

    def note(self, text: str) -> None:
        """Tell a person something in passing; silent unless the output is for people."""
        if self.output is OutputFormat.HUMAN:
            self._err.print(_harmless(text), markup=False)

    def warn(self, text: str) -> None:
        """Tell something that may matter later; always written."""
        self._err.print(f"[yellow]warning:[/] {escape(_harmless(text))}")

    def error(self, error: MlosError) -> None:
        """Show an error: one clear line, and what to do next. With JSON output, one JSON object on stderr."""
        if self.output is OutputFormat.JSON:
            self._err.print(json.dumps({"error": error.as_dict()}), markup=False, soft_wrap=True)
            return
        self._err.print(f"[red]error:[/] {escape(_harmless(error.message))}")
        if error.hint:
            self._err.print(f"[dim]try:[/] {escape(_harmless(error.hint))}")

    @contextmanager
    def step(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Step]:
        """Show that ``name`` is under way, and how far, until the block ends.

        ``unit`` is ``"B"`` for bytes, else a word that is shown as it is.
        """
        match self._progress:
            case ProgressMode.AUTO:
                with _terminal_step(self._err, name, total, unit) as step:
                    yield step
            case ProgressMode.NONE:
                yield _SilentStep()
            case ProgressMode.PLAIN | ProgressMode.JSON:
                step = _LineStep(name, total, unit, self._write_line)
                step.write("start")
                yield step
                step.write("done")

    def _write_line(self, event: dict[str, Any]) -> None:
        if self._progress is ProgressMode.JSON:
            text = json.dumps(event)
        else:
            of = f" of {event['total']:g}" if event["total"] else ""
            amount = f" {event['done']:g}{of} {event['unit']}".rstrip() if event["done"] else ""
            text = f"{event['step']}: {event['event']}{amount} ({event['seconds']:.1f} s)"
        self._err.print(text, markup=False, soft_wrap=True)


def _plain_or_terminal(stream: TextIO) -> RichConsole:
    """A console that fits its terminal, or cuts nothing where it writes to a file or a pipe."""
    width = None if stream.isatty() else _WIDE
    return RichConsole(file=stream, soft_wrap=width is not None, width=width, highlight=False, emoji=False)


def _harmless(text: str) -> str:
    """``text`` with control characters shown as escapes: a name must not move a terminal's cursor."""
    return "".join(
        character if character.isprintable() or character in "\n\u00a0\u3000" else repr(character)[1:-1]
        for character in text
    )


class _SilentStep:
    def advance(self, amount: float) -> None:
        pass

    def expect(self, total: float) -> None:
        pass


class _LineStep:
    """Writes at the start, at the end, and at most every five seconds between."""

    def __init__(
        self, name: str, total: float | None, unit: str, write: Callable[[dict[str, Any]], None]
    ) -> None:
        self._name, self._total, self._unit, self._write = name, total, unit, write
        self._done = 0.0
        self._started = self._written = time.monotonic()

    def write(self, event: str) -> None:
        self._written = time.monotonic()
        self._write(
            {
                "step": self._name,
                "event": event,
                "done": self._done,
                "total": self._total,
                "unit": self._unit,
                "seconds": round(self._written - self._started, 3),
            }
        )

    def advance(self, amount: float) -> None:
        self._done += amount
        if time.monotonic() - self._written > 5:
            self.write("progress")

    def expect(self, total: float) -> None:
        self._total = total


class _TerminalStep:
    def __init__(self, progress: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float) -> None:
        self._progress.advance(self._task, amount)

    def expect(self, total: float) -> None:
        self._progress.update(self._task, total=total)


@contextmanager
def _terminal_step(console: RichConsole, name: str, total: float | None, unit: str) -> Iterator[Step]:
    columns: list[rich.progress.ProgressColumn] = [
        rich.progress.SpinnerColumn(),
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
    ]
    if unit == "B":
        columns += [rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn()]
    else:
        columns += [rich.progress.MofNCompleteColumn(), rich.progress.TextColumn(unit)]
    columns.append(rich.progress.TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=console, transient=True) as progress:
        yield _TerminalStep(progress, progress.add_task(escape(name), total=total))


def run(app: typer.Typer, console: Callable[[], Console]) -> NoReturn:
    """Run a command line and leave the process with the documented exit status.

    Errors raised on purpose become one line and their status; Ctrl-C becomes 130; anything else is a bug and
    keeps its traceback. ``console`` gives the console that the command's own flags chose.
    """
    try:
        app(standalone_mode=True)
    except MlosError as error:
        console().error(error)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)
