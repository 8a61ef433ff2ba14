"""Writes docs/reference/commands*.md from the commands; `python docs/generate_cli.py --check` only compares."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from generated import write_or_check

from cpt_cli.command import examples
from cpt_cli.commands import COMMANDS
from cpt_cli.main import EXIT_CODES, ROOT_EXAMPLES, root_epilog

FOLDER = Path(__file__).parent / "reference"
NOTICE = (
    f"<!-- Written by docs/generate_cli.py with typer {version('typer')}: "
    "change the commands in cli/cpt_cli, then run `make docs`. -->\n\n"
)
SHARED = re.compile(r"\* `(?:--json|-q, --quiet|--debug|--help)`: .*\n")
"""Options of all commands, which the first page explains."""


def render() -> dict[str, str]:
    """Return the pages by name: what Typer writes, by panel of the help, with the examples as code blocks."""
    done = subprocess.run(
        [sys.executable, "-m", "typer", "cpt_cli.main", "utils", "docs", "--name", "cpt"],
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.replace(root_epilog(), f"{_code(ROOT_EXAMPLES)}\n\n**Exit codes**: {EXIT_CODES}.")
    for command in COMMANDS:
        shown = command.load().examples
        text = text.replace(examples(shown), _code(shown))
    root, *sections = re.split(r"^(?=## `cpt )", text.replace("&#x27;", "'"), flags=re.MULTILINE)
    by_name = dict(zip(re.findall(r"^## `cpt ([\w-]+)`", "".join(sections), flags=re.MULTILINE), sections, strict=True))
    pages = {"commands.md": NOTICE + root.partition("**Commands**")[0]}
    for panel in dict.fromkeys(command.panel for command in COMMANDS):
        page = f"commands-{panel.split()[0].lower()}.md"
        commands = [command.name for command in COMMANDS if command.panel == panel]
        links = "\n".join(f"- [`cpt {name}`]({page}#cpt-{name}): {_first_line(by_name[name])}" for name in commands)
        pages["commands.md"] += f"## {panel}\n\n{links}\n\n"
        pages[page] = f"{NOTICE}# {panel}\n\n" + "".join(SHARED.sub("", by_name[name]) for name in commands)
    pages["commands.md"] += (
        "## Options of all commands\n\n`--json` prints one JSON object, `-q` or `--quiet` results only, `--debug` the "
        "traceback of an error, `--help` the help.\n"
    )
    without_options = re.compile(r"\*\*Options\*\*:\n\n(?=\n|\Z|## )")
    return {name: without_options.sub("", page).strip() + "\n" for name, page in pages.items()}


def _first_line(section: str) -> str:
    return section.split("\n\n")[1].replace("\n", " ")


def _code(commands: tuple[str, ...]) -> str:
    lines = "\n".join(f"$ {command}" for command in commands)
    return f"**Examples**:\n\n```console\n{lines}\n```"


def main() -> int:
    """Write the pages, or with --check return 1 if one is out of date."""
    return write_or_check({FOLDER / name: text for name, text in render().items()})


if __name__ == "__main__":
    sys.exit(main())
