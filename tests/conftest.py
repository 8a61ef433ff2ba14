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

SLOW = Path(__file__).with_name("slow.txt")
"""Ids of tests that take longer than `SECONDS`, which the default set leaves out; `pytest --all --write-slow` lists
them anew."""
SECONDS = 1.0
ALWAYS = ("test_workflow", "test_readme", "test_quickstart", "test_onnx_files", "test_serving")
"""Files of `e2e` that are in the default set however long they take: they go the whole path."""

DURATIONS = pytest.StashKey[dict[str, float]]()
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
    parser.addoption("--write-slow", action="store_true", help=f"list the tests above {SECONDS:g} s in {SLOW.name}")


def pytest_configure(config: pytest.Config) -> None:
    """Start the watchdog of this run; the workers of pytest-xdist have that of their master."""
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        program = [sys.executable, "-I", Path(__file__).with_name("watchdog.py"), MARK, str(os.getpid())]
        none = subprocess.DEVNULL
        # In a session of its own a Ctrl-C in the terminal does not reach it.
        process = subprocess.Popen(program, stdin=none, stdout=none, stderr=none, start_new_session=True)
        config.stash[WATCHDOG] = process
        if config.option.write_slow:
            config.stash[DURATIONS] = {}
            config.pluginmanager.register(_Durations(config.stash[DURATIONS]))


class _Durations:
    """Notes how long tests take, without their fixtures."""

    def __init__(self, found: dict[str, float]) -> None:
        self._found = found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._found[report.nodeid] = report.duration

    def pytest_sessionfinish(self) -> None:
        slow = sorted(
            test for test, seconds in self._found.items() if seconds > SECONDS and not _goes_the_whole_path(test)
        )
        SLOW.write_text("".join(f"{test}\n" for test in slow), encoding="utf-8")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the slow tests and draw fewer examples, unless everything is asked for or a test by its name."""
    listed = set(SLOW.read_text(encoding="utf-8").splitlines())
    slow = [
        item for item in items if item.get_closest_marker("slow") or _is_further_case(item) or item.nodeid in listed
    ]
    if config.option.all:
        # The workers of pytest-xdist take files one by one: one that takes long at the end would leave the others idle.
        long = {item.path for item in slow}
        items.sort(key=lambda item: item.path not in long)
    named = any("::" in argument for argument in config.args) or config.option.keyword or config.option.markexpr
    if config.option.all or named:
        return
    for marked in {(item.function, pattern) for item in slow for pattern in _usual_cases(item)}:
        if not any(getattr(item, "function", None) is marked[0] and _is_case(item, marked[1]) for item in items):
            raise pytest.UsageError(
                f"Expected by_default to name cases of {marked[0].__qualname__}, but got {marked[1]!r}"
            )
    config.hook.pytest_deselected(items=slow)
    left_out = set(slow)
    items[:] = [item for item in items if item not in left_out]
    for function in {item.function for item in items if isinstance(item, pytest.Function)}:
        draws = getattr(function, "_hypothesis_internal_use_settings", None)
        if draws is not None:
            fewer = max(1, draws.max_examples // FEWER)
            function._hypothesis_internal_use_settings = settings(draws, max_examples=fewer)


def _goes_the_whole_path(test: str) -> bool:
    return test.startswith(tuple(f"tests/e2e/{name}.py" for name in ALWAYS))


def _usual_cases(item: pytest.Item) -> list[str]:
    """The patterns of the cases that are in the default set; none if all are."""
    return [pattern for marker in item.iter_markers("by_default") for pattern in marker.args]


def _is_case(item: pytest.Item, pattern: str) -> bool:
    return isinstance(item, pytest.Function) and fnmatch(item.callspec.id, pattern)


def _is_further_case(item: pytest.Item) -> bool:
    patterns = _usual_cases(item)
    return bool(patterns) and not any(_is_case(item, pattern) for pattern in patterns)
