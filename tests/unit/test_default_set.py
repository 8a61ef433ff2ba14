"""Which tests run by default, which with --all or by their name, and how many examples are drawn."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest
from hypothesis import given, strategies as st

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.by_default("small*")
@pytest.mark.parametrize("network", ["small-1", "large", "small-2"])
def test_cases(network): pass

drawn = []

@given(st.integers())
def test_drawn(number): drawn.append(number)

def test_draws(): print("drawn", len(drawn))
"""


@pytest.mark.parametrize(
    ("words", "ran", "drawn"),
    [
        (["test_it.py"], {"cases[small-1]", "cases[small-2]", "drawn", "draws"}, 15),
        (
            ["test_it.py", "--all"],
            {"slow", "cases[small-1]", "cases[large]", "cases[small-2]", "drawn", "draws"},
            60,
        ),
        (["test_it.py::test_slow"], {"slow"}, None),
    ],
    ids=["default", "all", "named"],
)
def test_what_is_chosen(tmp_path, words, ran, drawn):
    (tmp_path / "test_it.py").write_text(TESTS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "CPT_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-s", "-p", "tests.conftest", "-p", "no:cacheprovider", *words],
        cwd=tmp_path,
        env=kept | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(re.findall(r"test_it\.py::test_(\S+)", done.stdout)) == ran
    assert re.findall(r"drawn (\d+)", done.stdout) == ([] if drawn is None else [str(drawn)])
