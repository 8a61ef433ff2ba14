"""The pages in docs/ agree with the code."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cpt_deploy.recipe import load_recipe
from cpt_serving.settings import ServeSettings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")] if ".venv" not in path.parts
)


def test_the_page_of_the_commands_is_up_to_date():
    written_with = re.search(r"with typer ([\d.]+):", (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    assert written_with is not None
    if written_with[1] != version("typer"):
        pytest.skip(
            f"docs/cli.md was written with typer {written_with[1]}, and each version writes a little differently"
        )
    line = [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


def test_the_table_of_the_recipes_is_up_to_date():
    line = [sys.executable, ROOT / "docs" / "generate_recipes.py", "--check"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `make docs`\n{done.stderr}"


def test_the_page_of_the_server_lists_every_setting_with_its_default():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
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


#: The flags of the authors' two programs.
AUTHORS_FLAGS = {
    "dir", "cmd", "arch", "dataset", "datadir", "workers", "iters", "epoch", "start_iter", "start_epoch",
    "batch_size", "lr_schedule", "lr", "momentum", "weight_decay", "print_freq", "resume", "pretrained",
    "step_ratio", "warm_up", "save_folder", "eval_every", "num_bits", "num_grad_bits", "num_bits_schedule",
    "num_grad_bits_schedule", "is_cyclic_precision", "cyclic_num_bits_schedule", "cyclic_num_grad_bits_schedule",
    "num_cyclic_period", "swa_start", "swa_freq", "automatic_resume",
}  # fmt: skip


def test_each_flag_of_the_authors_has_an_equivalent_that_can_be_set():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").partition("## The authors' command line")[2]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `--")]

    named = {flag for theirs, _ in rows for flag in re.findall(r"--(\w+)", theirs)}
    assert named == AUTHORS_FLAGS
    commands = [shlex.split(code) for _, ours in rows for code in re.findall(r"`([^`]+)`", ours)]
    settings = [[word for word in words if re.match(r"[a-z]+\.[a-z_.]+=", word)] for words in commands]
    assert sum(map(len, settings)) >= 40
    for words in settings:
        load_recipe("cifar10-paper", words)
