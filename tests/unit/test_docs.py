"""The pages in docs/ agree with the code."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cpt_serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "benchmarks/*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


def test_the_page_of_the_commands_is_up_to_date():
    written_with = re.search(
        r"with typer ([\d.]+):", (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    )
    assert written_with is not None
    if written_with[1] != version("typer"):
        pytest.skip(
            f"docs/reference/commands.md was written with typer {written_with[1]}, and each version writes a little differently"
        )
    line = [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


def test_the_table_of_the_recipes_is_up_to_date():
    line = [sys.executable, ROOT / "docs" / "generate_recipes.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


def test_the_page_of_the_server_lists_every_setting_with_its_default():
    page = (ROOT / "docs" / "how-to" / "serving.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", page, flags=re.MULTILINE))
    assert list(listed) == [name.upper() for name in ServeSettings.model_fields]
    for name, field in ServeSettings.model_fields.items():
        if field.default is not None and not field.is_required():
            shown = (
                str(field.default).lower()
                if isinstance(field.default, bool)
                else f"{field.default:g}"
                if isinstance(field.default, float)
                else str(field.default)
            )
            assert listed[name.upper()] == shown


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page.parent / target).exists(), f"{page} links to {target}"
