from __future__ import annotations

import json

import pytest
import typer

from mlos.console import Console, OutputFormat, ProgressMode, run
from mlos.errors import CorruptError, MlosError, NotFoundError, UnavailableError


@pytest.mark.parametrize(
    ("output", "expected"),
    [(OutputFormat.HUMAN, "a [bold] name\n"), (OutputFormat.QUIET, "one\ntwo\n")],
)
def test_results_go_to_stdout_in_the_form_asked_for(
    output: OutputFormat, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Console(output).result({"a": 1}, lambda: r"a \[bold] name", brief=("one", "two"))
    assert capsys.readouterr().out == expected


def test_json_results_are_exactly_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "x" * 300, "markup": "[red]no[/]"}
    Console(OutputFormat.JSON).result(data, lambda: "unused")
    assert json.loads(capsys.readouterr().out) == data


def test_notes_warnings_and_errors_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.note("a note")
    console.warn("careful [here]")
    console.error(NotFoundError("no [bold] model :x:0:", hint="axon list"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "a note\nwarning: careful [here]\nerror: no [bold] model :x:0:\ntry: axon list\n"


def test_a_hostile_name_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error(NotFoundError("no \x1b[31mred\x9b model, naïve café"))
    assert capsys.readouterr().err == "error: no \\x1b[31mred\\x9b model, naïve café\n"


def test_errors_are_one_json_object_when_json_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    Console(OutputFormat.JSON).error(CorruptError("x", field="f", expected="a", got="b"))
    assert json.loads(capsys.readouterr().err)["error"]["code"] == "corrupt"


def test_progress_lines_say_what_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with Console(progress=ProgressMode.JSON).step("download", total=10, unit="B") as step:
        step.expect(20)
        step.advance(20)
    first, last = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["event"], first["total"]) == ("start", 10)
    assert (last["event"], last["done"], last["total"]) == ("done", 20, 20)
    with Console(progress=ProgressMode.PLAIN).step("convert"):
        pass
    assert capsys.readouterr().err.startswith("convert: start")


def test_progress_is_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().step("download", total=1) as step:
        step.advance(1)
    assert capsys.readouterr().err == ""


def test_a_deliberate_error_ends_a_program_with_its_documented_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise CorruptError("blob is not itself")

    monkeypatch.setattr("sys.argv", ["axon"])
    with pytest.raises(SystemExit) as ended:
        run(app, Console)
    assert ended.value.code == 4
    assert capsys.readouterr().err == "error: blob is not itself\n"


def test_an_error_crosses_a_process_boundary_as_itself() -> None:
    error = CorruptError("m", hint="h", field="f", expected="e", got="g")
    again = MlosError.from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(again) is CorruptError
    assert again.as_dict() == error.as_dict()
    assert type(MlosError.from_dict(UnavailableError("later").as_dict())) is UnavailableError
    assert type(MlosError.from_dict({"code": "from the future", "message": "m"})) is MlosError


def test_an_error_raised_again_keeps_when_to_come_back() -> None:
    first = UnavailableError("later", retry_after=30.0, hint="wait")
    again = first.again()
    assert isinstance(again, UnavailableError)
    assert again is not first
    assert (again.message, again.hint, again.retry_after) == ("later", "wait", 30.0)
