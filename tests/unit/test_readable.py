"""Numbers as people read them."""

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy import readable


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (1_240_000, "1.24 MB"), (3e18, "3000000.00 TB")],
)
def test_sizes_use_decimal_units(size_bytes, text):
    assert readable.size(size_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (269_722, "269.72 K"), (40_550_400, "40.55 M"), (1.5e15, "1.50 P")]
)
def test_counts_have_no_unit(number, text):
    assert readable.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12 ms"),
        (12.34, "12.3 s"),
        (59.96, "60.0 s"),
        (60, "1 min 00 s"),
        (245, "4 min 05 s"),
        (7384, "2 h 03 min"),
    ],
)
def test_durations_use_the_natural_unit(seconds, text):
    assert readable.duration(seconds) == text


def test_shares_are_percentages_and_a_missing_one_is_a_dash():
    assert readable.share(0.36671) == "36.67 %"
    assert readable.share(1, digits=0) == "100 %"
    assert readable.share(None) == "-"


def test_sparkline_shows_a_cycle():
    assert readable.sparkline([3, 4, 5, 6, 7, 8]) == "▁▂▄▅▇█"
    assert readable.sparkline([8, 8]) == "██"
    assert readable.sparkline([]) == ""


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1), st.integers(1, 100))
def test_sparkline_never_exceeds_its_width_and_marks_the_extremes(values, width):
    line = readable.sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert "█" in line


def test_paths_below_the_working_directory_are_shown_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readable.path(tmp_path / "runs" / "a") == "runs/a"
    assert readable.path(Path("runs/a")) == "runs/a"
    assert readable.path(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00305966, "0.00306"),
        (1.5625, "1.56"),
        (1, "1"),
        (0, "0"),
        (0.5, "0.5"),
        (163.84, "164"),
        (64_000.4, "64,000"),
    ],
)
def test_figures_have_three_digits_and_no_exponent(value, text):
    assert readable.figure(value) == text


def test_counted_things_are_singular_or_plural():
    assert readable.counted(1, "class", "classes") == "1 class"
    assert readable.counted(1000, "class", "classes") == "1,000 classes"
    assert readable.counted(2, "step") == "2 steps"


def test_arguments_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readable.argument(tmp_path / "my photos") == "'my photos'"
    assert shlex.split(readable.argument(tmp_path / "it's")) == ["it's"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.1235"),
        (31, "31"),
        (True, "true"),
        ("größer", '"größer"'),
        ([0.0438718, -0.024894472, 1e-9], "[0.04387, -0.02489, 1e-09]"),
        ([[1, 2], [3, 4]], "[[1, 2], [3, 4]]"),
        ([], "[]"),
        ([[0.25] * 8, [0.5] * 7 + [123456.0]], "2 x 8 values, 0.25 to 1.235e+05"),
        (list(range(13)), "13 values, 0 to 12"),
        (["word"] * 13, "[" + ", ".join(['"word"'] * 13) + "]"),
    ],
)
def test_values_are_rounded_and_many_become_their_sizes_and_range(value, text):
    assert readable.values(value) == text
