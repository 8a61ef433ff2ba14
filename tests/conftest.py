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
    slow = [item for item in items if item.get_closest_marker("slow") or _is_further_case(item)]
    if config.option.all:
        # The workers of pytest-xdist take files one by one: one that takes long at the end would leave the others idle.
        long = {item.path for item in slow}
        items.sort(key=lambda item: item.path not in long)
    named = any("::" in argument for argument in config.args) or config.option.keyword or config.option.markexpr
    if config.option.all or named:
        return
    config.hook.pytest_deselected(items=slow)
    left_out = set(slow)
    items[:] = [item for item in items if item not in left_out]
    for function in {item.function for item in items if isinstance(item, pytest.Function)}:
        draws = getattr(function, "_hypothesis_internal_use_settings", None)
        if draws is not None:
            fewer = max(1, draws.max_examples // FEWER)
            function._hypothesis_internal_use_settings = settings(draws, max_examples=fewer)
    for marked in {(item.function, pattern) for item in slow for pattern in _usual_cases(item)}:
        if not any(getattr(item, "function", None) is marked[0] and _is_case(item, marked[1]) for item in items):
            raise pytest.UsageError(
                f"Expected by_default to name cases of {marked[0].__qualname__}, but got {marked[1]!r}"
            )


def _usual_cases(item: pytest.Item) -> list[str]:
    """The patterns of the cases that are in the default set; none if all are."""
    return [pattern for marker in item.iter_markers("by_default") for pattern in marker.args]


def _is_case(item: pytest.Item, pattern: str) -> bool:
    return isinstance(item, pytest.Function) and fnmatch(item.callspec.id, pattern)


def _is_further_case(item: pytest.Item) -> bool:
    patterns = _usual_cases(item)
    return bool(patterns) and not any(_is_case(item, pattern) for pattern in patterns)
