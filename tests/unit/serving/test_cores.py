import os

import pytest

from cpt_serving import cores
from cpt_serving.cores import available_cores, quota_cores


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("5000 100000\n", 1),
        ("max 100000\n", None),
        ("", None),
        ("many 100000\n", None),
    ],
)
def test_the_limit_of_a_container_is_read_where_linux_states_it(tmp_path, content, expected):
    (tmp_path / "cpu.max").write_text(content)
    assert quota_cores(tmp_path) == expected


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert quota_cores(tmp_path) is None


def test_affinity_and_limit_both_bound_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert available_cores() == 8
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    assert available_cores() == 3
    (tmp_path / "cpu.max").write_text("6400000 100000\n")
    assert available_cores() == 8
