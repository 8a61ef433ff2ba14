"""The pages in docs/ agree with the code, link to what exists, and become a site that loads nothing from elsewhere."""

import doctest
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

import cpt_deploy
from cpt_cli.commands import COMMANDS as COMMAND_TABLE
from cpt_cli.main import app
from cpt_deploy.bundle import Bundle
from cpt_deploy.recipe import load_recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMANDS = DOCS / "reference" / "commands.md"
PAGES = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "benchmarks/*.md", "docs/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    """The script that writes the pages of fields, settings and routes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("generate_reference")


def test_the_page_of_the_commands_is_up_to_date():
    written_with = re.search(r"with typer ([\d.]+):", COMMANDS.read_text(encoding="utf-8"))
    assert written_with is not None
    if written_with[1] != version("typer"):
        pytest.skip(
            f"commands.md was written with typer {written_with[1]}, and each version writes a little differently"
        )
    line = [sys.executable, DOCS / "generate_cli.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


def test_the_table_of_the_recipes_is_up_to_date():
    line = [sys.executable, DOCS / "generate_recipes.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


@pytest.mark.parametrize("name", ["recipe_fields", "server_settings"])
def test_fields_and_settings_are_those_of_the_code(generate: ModuleType, name: str):
    page = DOCS / "reference" / f"{name.replace('_', '-')}.md"
    assert page.read_text(encoding="utf-8") == getattr(generate, name)(), "run `make docs`"


def test_the_routes_are_those_of_the_server(generate: ModuleType, shared_bundle: Bundle):
    page = (DOCS / "reference" / "http-routes.md").read_text(encoding="utf-8")
    assert page == generate.http_routes(generate.openapi(shared_bundle.path)), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_pages_lead_somewhere(page: Path):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page.parent / target).exists(), f"{page} links to {target}"


def test_the_example_of_the_library_computes_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = doctest.testfile(str(DOCS / "reference" / "python" / "library.md"), module_relative=False)
    assert done.failed == 0 < done.attempted


@pytest.mark.parametrize("name", [name for name in cpt_deploy.__all__ if not name.startswith("_")])
def test_public_names_are_documented_and_their_examples_hold(name: str):
    thing = getattr(cpt_deploy, name)
    page = (DOCS / "reference" / "python" / "library.md").read_text(encoding="utf-8")
    assert re.search(rf"^::: [\w.]+\.{name}$", page, flags=re.MULTILINE)
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    tests = finder.find(thing, name)
    assert tests
    assert tests[0].docstring
    for test in tests:
        assert runner.run(test).failed == 0


@pytest.mark.parametrize("page", [page for page in PAGES if page.parts[0] == "docs"], ids=str)
def test_files_of_the_code_that_a_page_names_exist(page: Path):
    places = [ROOT, ROOT / "cpt_deploy", ROOT / "serving", ROOT / "serving" / "cpt_serving"]
    for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.py)`", (ROOT / page).read_text(encoding="utf-8")):
        assert any((place / name).is_file() for place in places), f"{page} names {name}"


def _typed_commands() -> list[tuple[str, str]]:
    """Return page and line of each command of this project in the pages' blocks of code."""
    found = []
    for page in PAGES:
        blocks = re.findall(
            r"^(?:```(?:sh|console)\n.*?^```|(?: {4}.*\n)+)", (ROOT / page).read_text("utf-8"), re.M | re.S
        )
        lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
        found += [(str(page), line.partition("  #")[0]) for line in lines if re.match(r"cpt [a-z]", line)]
    return found


def test_commands_in_the_pages_exist_with_their_options():
    group = get_command(app)
    commands = {entry.name: group.get_command(None, entry.name) for entry in COMMAND_TABLE}  # type: ignore[attr-defined]
    typed = _typed_commands()
    assert len({line.split()[1] for _, line in typed}) == len(commands)  # each is shown somewhere
    for page, line in typed:
        for part in re.split(r"&&|\|", line):
            program, *words = part.split()
            if program != "cpt":
                continue
            name = words[0]
            assert name in commands, f"{page}: {line}"
            known = {
                option for parameter in commands[name].params for option in parameter.opts + parameter.secondary_opts
            }
            options = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert options <= known | {"--help"}, f"{page}: {line}"


class _Assets(HTMLParser):
    """Collects the addresses that a browser loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in {"canonical", "prev", "next"}:
            self.addresses.append(values.get("href") or "")
        elif tag in {"script", "img", "iframe", "source", "video", "audio", "embed"}:
            self.addresses.append(values.get("src") or values.get("srcset") or "")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path):
    paths = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        parser = _Assets()
        parser.feed(page.read_text(encoding="utf-8"))
        assert len(parser.addresses) > 2
        assert not [address for address in parser.addresses if re.match(r"(https?:)?//", address)], page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(url\(|@import )['\"]?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    index = (tmp_path / "site" / "search" / "search_index.json").read_text(encoding="utf-8")
    assert "CyclicPrecision" in index


#: The flags of the authors' two programs.
AUTHORS_FLAGS = {
    "dir", "cmd", "arch", "dataset", "datadir", "workers", "iters", "epoch", "start_iter", "start_epoch",
    "batch_size", "lr_schedule", "lr", "momentum", "weight_decay", "print_freq", "resume", "pretrained",
    "step_ratio", "warm_up", "save_folder", "eval_every", "num_bits", "num_grad_bits", "num_bits_schedule",
    "num_grad_bits_schedule", "is_cyclic_precision", "cyclic_num_bits_schedule", "cyclic_num_grad_bits_schedule",
    "num_cyclic_period", "swa_start", "swa_freq", "automatic_resume",
}  # fmt: skip


def test_each_flag_of_the_authors_has_an_equivalent_that_can_be_set():
    text = (DOCS / "reference" / "authors-flags.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `--")]

    named = {flag for theirs, _ in rows for flag in re.findall(r"--(\w+)", theirs)}
    assert named == AUTHORS_FLAGS
    commands = [shlex.split(code) for _, ours in rows for code in re.findall(r"`([^`]+)`", ours)]
    settings = [[word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)] for words in commands]
    assert sum(map(len, settings)) >= 40
    for words in settings:
        load_recipe("cifar10-paper", words)
