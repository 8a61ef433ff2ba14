"""Writes docs/cli.md from the commands themselves; `python docs/generate_cli.py --check` only compares."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from cpt_cli.command import examples
from cpt_cli.commands import COMMANDS
from cpt_cli.main import EXIT_CODES, ROOT_EXAMPLES, root_epilog

PAGE = Path(__file__).with_name("cli.md")
NOTICE = (
    f"<!-- Written by docs/generate_cli.py with typer {version('typer')}: "
    "change the commands in cli/cpt_cli, then run `make docs`. -->\n\n"
)


def render() -> str:
    """Return the page: what Typer writes, with the examples as code blocks."""
    done = subprocess.run(
        [sys.executable, "-m", "typer", "cpt_cli.main", "utils", "docs", "--name", "cpt"],
        capture_output=True,
        text=True,
        check=True,
    )
    page = done.stdout.replace(root_epilog(), f"{_code(ROOT_EXAMPLES)}\n\n**Exit codes**: {EXIT_CODES}.")
    for command in COMMANDS:
        shown = command.load().examples
        page = page.replace(examples(shown), _code(shown))
    return NOTICE + page.strip() + "\n"


def _code(commands: tuple[str, ...]) -> str:
    lines = "\n".join(f"$ {command}" for command in commands)
    return f"**Examples**:\n\n```console\n{lines}\n```"


def main() -> int:
    """Write the page, or with --check return 1 if it is out of date."""
    page = render()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    return 0 if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page else 1


if __name__ == "__main__":
    sys.exit(main())
