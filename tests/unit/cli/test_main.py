"""Every way a command line can end: one line, the right exit code, and JSON that stays JSON."""

import errno
import json
import subprocess
import sys

import pytest

from cpt_cli import main as main_module
from cpt_cli.command import paragraphs
from cpt_cli.commands import COMMANDS, Listed
from cpt_cli.main import main
from cpt_deploy import __version__
from cpt_deploy.errors import (
    BundleError,
    CptError,
    MissingExtraError,
    RecipeError,
    RunInterruptedError,
    ValidationFailedError,
)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("CPT_DEBUG", raising=False)


@pytest.fixture
def failing(monkeypatch):
    """Let the command line run into an error that is given."""

    def fail(error):
        def raise_it(*arguments, **settings):
            raise error

        monkeypatch.setattr(main_module, "app", raise_it)

    return fail


def test_no_words_show_the_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    for listed in COMMANDS:
        assert f"  {listed.name} " in printed
        assert listed.summary in " ".join(printed.split())


@pytest.mark.parametrize("listed", COMMANDS, ids=lambda listed: listed.name)
def test_help_of_each_command_has_its_examples_and_the_shared_options(capsys, listed: Listed):
    assert main([listed.name, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    command = listed.load()
    assert command.name == listed.name
    assert paragraphs(command.function.__doc__).partition("\n\n")[0] == listed.summary
    assert 1 <= len(command.examples) <= 5
    for example in command.examples:
        assert example.startswith(f"cpt {command.name}")
        assert " ".join(example.partition("  # ")[0].split()) in printed
    for option in ("--json", "--quiet", "--debug", "--help"):
        assert option in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cpt-deploy {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?", "see cpt --help"),
        (["train", "--epoch", "3"], "No such option: --epoch (Possible options: --epochs)", "see cpt train --help"),
        (["train", "--epochs", "many"], "Invalid value for '--epochs': ", "see cpt train --help"),
        (["validate"], "Missing argument 'BUNDLE|RUN|FILE'", "see cpt validate --help"),
        (["serve", "bundle", "--port", "65536"], "Invalid value for '--port': ", "see cpt serve --help"),
    ],
    ids=["command", "option", "number", "missing", "range"],
)
def test_a_line_that_does_not_parse_is_one_line_with_a_hint(capsys, words, message, hint):
    assert main(words) == 2
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: {hint}"
    assert printed.out == ""


def test_a_line_that_does_not_parse_keeps_to_json(capsys):
    assert main(["train", "--json", "--epoch", "3"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["command"] == "train"
    assert document["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (CptError("it failed", hint="do this"), 1, ["error: it failed", "hint: do this"]),
        (MissingExtraError("torch is missing"), 3, ["error: torch is missing"]),
        (ValidationFailedError("dropped"), 4, ["error: dropped"]),
        (BundleError("no bundle"), 5, ["error: no bundle"]),
        (RunInterruptedError("stopped", signal_number=15), 143, ["error: stopped"]),
        (RecipeError("2 settings:\n  a\n  b"), 2, ["error: 2 settings:", "  a", "  b"]),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x.yaml"),
            5,
            ["error: x.yaml: No such file or directory"],
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 5, ["error: No space left on device"]),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch.nn"),
            3,
            ["error: torch is not installed", "hint: pip install '.[train]' in the clone of cpt-deploy"],
        ),
        (
            RuntimeError("mat1 and mat2\nshapes"),
            1,
            [
                "error: unexpected RuntimeError: mat1 and mat2",
                "hint: add --debug (or CPT_DEBUG=1) to see the traceback",
            ],
        ),
        (
            ModuleNotFoundError("No module named 'mine'", name="mine"),
            1,
            [
                "error: unexpected ModuleNotFoundError: No module named 'mine'",
                "hint: add --debug (or CPT_DEBUG=1) to see the traceback",
            ],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_become_a_line_and_an_exit_code(capsys, failing, error, code, lines):
    failing(error)
    assert main(["info"]) == code
    printed = capsys.readouterr()
    assert printed.err.splitlines() == lines
    assert printed.out == ""


def test_debug_shows_the_traceback_before_the_line(capsys, failing, monkeypatch):
    failing(BundleError("no bundle"))
    assert main(["info", "--debug"]) == 5
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert printed.endswith("error: no bundle\n")
    monkeypatch.setenv("CPT_DEBUG", "1")
    assert main(["info"]) == 5
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CPT_DEBUG", "0")
    assert main(["info"]) == 5
    assert "Traceback" not in capsys.readouterr().err


def test_ctrl_c_ends_with_130(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("cpt_cli.commands.listing.info._training_device", interrupt)
    assert main(["info"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_info_reports_versions_in_both_forms(capsys):
    assert main(["info"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["versions"]["cpt-deploy"] == __version__
    assert printed.err == ""


def test_a_command_looks_for_garbage_less_often_and_a_server_as_usual() -> None:
    """A server's slowest requests are those that a look for garbage holds up."""
    script = (
        "import gc; usual = gc.get_threshold(); from cpt_cli import garbage; from cpt_cli.main import main;"
        "main(['schedules', '--json']); assert gc.get_threshold()[0] > 5 * usual[0];"
        "garbage.look_as_usual(); assert gc.get_threshold() == usual"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0
