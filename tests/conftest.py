"""What every test run has: the default set and the whole, the draws of property tests, and an end without leftovers."""

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import settings

# The workers of pytest-xdist have a terminal's width in their environment, and commands would keep to it.
os.environ.pop("COLUMNS", None)

# Children of this run, and theirs, are known by it.
MARK = f"TESTS_OF_{os.getpid()}"
os.environ[MARK] = "1"

WATCHDOG = pytest.StashKey[subprocess.Popen[bytes]]()

FEWER = 4
"""The default set draws a quarter of the examples."""

# How long an example takes says nothing on a machine that others use too. The same examples are drawn each time, so
# that the check of a commit has one answer; CPT_EXPLORE=1 draws new ones.
settings.register_profile("repeatable", deadline=None, max_examples=60, derandomize="CPT_EXPLORE" not in os.environ)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that asks for everything."""
    parser.addoption("--all", action="store_true", help="run the slow tests too, and draw all examples (make test-all)")


def pytest_configure(config: pytest.Config) -> None:
    """Start the watchdog of this run; the workers of pytest-xdist have that of their master."""
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        program = [sys.executable, "-I", Path(__file__).with_name("watchdog.py"), MARK, str(os.getpid())]
        none = subprocess.DEVNULL
        # In a session of its own a Ctrl-C in the terminal does not reach it.
        process = subprocess.Popen(program, stdin=none, stdout=none, stderr=none, start_new_session=True)
        config.stash[WATCHDOG] = process


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests and draw fewer examples, unless everything is asked for or a test by its name."""
    named = any("::" in argument for argument in config.args) or config.option.keyword or config.option.markexpr
    if config.option.all or named:
        return
    unused, chosen, slow = set(), [], []
    for item in items:
        unused.update((item.function, pattern) for pattern in _cases(item))
    for item in items:
        matching = [pattern for pattern in _cases(item) if fnmatch(item.callspec.id, pattern)]
        unused.difference_update((item.function, pattern) for pattern in matching)
        left_out = item.get_closest_marker("slow") or (_cases(item) and not matching)
        (slow if left_out else chosen).append(item)
    if unused:
        raise pytest.UsageError(f"Expected cases for each pattern of by_default, but got none for {unused}")
    config.hook.pytest_deselected(items=slow)
    items[:] = chosen
    for function in {item.function for item in items if isinstance(item, pytest.Function)}:
        draws = getattr(function, "_hypothesis_internal_use_settings", None)
        if draws is not None:
            fewer = max(1, draws.max_examples // FEWER)
            function._hypothesis_internal_use_settings = settings(draws, max_examples=fewer)


def _cases(item: pytest.Item) -> list[str]:
    return [pattern for marker in item.iter_markers("by_default") for pattern in marker.args]
