"""What goes to stdout, what to stderr, and what JSON holds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cpt_cli.output import Output


@pytest.fixture
def say_everything():
    def speak(out):
        out.note("working")
        out.fields("Done", {"accuracy": "97 %"})
        out.table(("name", "size"), [("a", 1), ("b", 20)], title="Models")
        out.warning("be\ncareful")
        out.hint("cpt export run")
        out.result({"accuracy": 0.97})

    return speak


def test_people_get_tables_on_stdout_and_the_rest_on_stderr(capsys, say_everything):
    say_everything(Output())
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert "97 %" in printed.out
    assert "Models" in printed.out
    assert printed.err.splitlines() == ["working", "warning: be careful", "next: cpt export run"]


def test_what_a_terminal_would_obey_is_written_out(capsys):
    out, evil = Output(), "name\x1b[2J\x9b31m\x07\r"
    out.fields(evil, {evil: evil})
    out.table(("name",), [(evil,)], title=evil)
    out.line(evil)
    out.text(evil)
    out.note(evil)
    out.error(evil, hint=evil)
    printed = capsys.readouterr()
    assert not set(printed.out + printed.err) & {"\x1b", "\x9b", "\x07", "\r"}
    assert printed.out.count(r"name\x1b[2J\x9b31m\x07\x0d") == 7
    assert printed.err.count(r"name\x1b[2J") == 3


def test_json_mode_prints_exactly_one_object_on_stdout(capsys, say_everything):
    out = Output()
    out.configure(command="train", json_mode=True)
    say_everything(out)
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"schema": 1, "command": "train", "accuracy": 0.97}
    assert printed.out.count("\n") == 1
    with pytest.raises(RuntimeError, match="second"):
        out.result({})


def test_quiet_keeps_first_columns_and_warnings(capsys, say_everything):
    out = Output()
    out.configure(quiet=True)
    say_everything(out)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["a", "b"]
    assert printed.err.splitlines() == ["warning: be careful"]


def test_an_error_is_one_line_with_its_hint_and_an_object_in_json_mode(capsys):
    out = Output()
    out.configure(command="export", json_mode=True)
    out.error("Expected A, but got [B]", hint="try C", exit_code=5, kind="DataError")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["error: Expected A, but got [B]", "hint: try C"]
    assert json.loads(printed.out)["error"] == {
        "type": "DataError",
        "message": "Expected A, but got [B]",
        "hint": "try C",
        "exit_code": 5,
    }


def test_an_error_after_the_result_leaves_the_result_alone(capsys):
    out = Output()
    out.configure(command="validate", json_mode=True)
    out.result({"passed": False})
    out.error("failed")
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_json_holds_what_commands_hand_over(capsys):
    @dataclasses.dataclass
    class Point:
        x: np.float32
        where: Path

    out = Output()
    out.configure(json_mode=True)
    out.result(
        {"nan": float("nan"), "point": Point(np.float32(1.5), Path("a/b")), "row": np.arange(3), 1: (True, None)}
    )
    document = json.loads(capsys.readouterr().out)
    assert document["nan"] is None
    assert document["point"] == {"x": 1.5, "where": "a/b"}
    assert document["row"] == [0, 1, 2]
    assert document["1"] == [True, None]


def test_json_refuses_what_it_cannot_hold():
    out = Output()
    out.configure(json_mode=True)
    with pytest.raises(TypeError, match="object"):
        out.result({"x": object()})


def test_markup_in_data_is_shown_as_it_is(capsys):
    out = Output()
    out.table(("name",), [("[red]x[/red]",)])
    out.fields("Model [a]", {"[b]": "[c]"})
    printed = capsys.readouterr().out
    for text in ("[red]x[/red]", "Model [a]", "[b]", "[c]"):
        assert text in printed


def test_long_lines_are_not_folded_in_a_pipe(capsys):
    out = Output()
    out.error("x" * 500)
    out.line("y" * 500)
    printed = capsys.readouterr()
    assert printed.err == f"error: {'x' * 500}\n"
    assert printed.out == f"{'y' * 500}\n"


@pytest.mark.parametrize(
    ("columns", "headings", "said"),
    [
        (80, ["recipe", "steps", "source", "saved"], ""),
        (44, ["recipe", "steps", "source", "saved"], ""),  # words wrap
        (43, ["recipe", "steps", "saved"], "also shows: source"),
        (25, ["recipe", "saved"], "also shows: steps, source"),
    ],
)
def test_columns_are_left_out_rather_than_names_folded(capsys, monkeypatch, columns, headings, said):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [("resnet38-cpt3-8", "64,000", "printed in a table", "36 %")]
    Output().table(("recipe", "steps", "source", "saved"), rows, optional=("source", "steps"))
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[1].split() == headings
    assert lines[3].split()[0] == "resnet38-cpt3-8"
    assert set(shown.out.split()) - {"─" * len(lines[2].strip())} <= {*headings, *" ".join(rows[0]).split()}
    assert max(map(len, lines)) <= columns
    assert said in shown.err
    assert bool(said) == bool(shown.err)
