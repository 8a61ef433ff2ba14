"""`cpt schedules`: the savings that Wolfe & Kyrillidis publish by group, own schedules, pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from cpt_cli.main import main

PUBLISHED = {
    "CR": 36.7, "LR": 37.3, "ER": 17.8, "RR": 60.1, "CT": 36.7, "LT": 37.2, "ETV": 36.5, "ETH": 17.8, "RTV": 36.3,
    "RTH": 60.1,
}  # fmt: skip
"""BitOPs saved in percent at 3-8 bits, gradients at 8, by the authors' code."""


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert main(["schedules", *words, "--json"]) == 0
    entries: list[dict[str, object]] = json.loads(capsys.readouterr().out)["schedules"]
    return entries


def test_savings_and_groups_are_the_published_ones(capsys):
    entries = {entry["short"]: entry for entry in listed(capsys, "--steps", "64000")}

    assert {short: round(100 * entry["saving"], 1) for short, entry in entries.items()} == pytest.approx(
        PUBLISHED, abs=0.1
    )
    by_group = {group: [100 * e["saving"] for e in entries.values() if e["group"] == f"{group} saving"]
                for group in ("large", "medium", "small")}  # fmt: skip
    assert [len(by_group[group]) for group in ("large", "medium", "small")] == [2, 6, 2]
    assert min(by_group["large"]) > max(by_group["medium"])
    assert min(by_group["medium"]) > max(by_group["small"])


def test_a_schedule_of_ones_own_is_shown_too(capsys, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from cpt_deploy.precision import StaticSchedule\n\ndef half(lower, upper):\n    return StaticSchedule(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    [entry] = listed(capsys, "mine:half")

    assert (entry["name"], entry["short"], entry["shares"]) == ("mine:half", None, {"4": 1.0})
    assert entry["saving"] == pytest.approx(1 - (4 * 4 + 2 * 4 * 8) / (8 * 8 + 2 * 8 * 8))


@pytest.mark.parametrize("name", ["schedules.png", "schedules.svg"])
def test_they_are_drawn(capsys, tmp_path, name):
    assert main(["schedules", "CR", "static", "--plot", str(tmp_path / name)]) == 0
    path = tmp_path / name
    if path.suffix == ".png":
        with Image.open(path) as picture:
            assert picture.width > 600
    else:
        assert "CR: 36.7" in path.read_text() or "<svg" in path.read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["nonsense"], "known precision schedule"),
        (["CR", "--bits", "8"], "LOWER-UPPER"),
        (["CR", "--bits", "8-3"], "lower <= upper"),
        (["CR", "--plot", "bits.txt"], "ending"),
        (["CR", "--plot", str(Path("missing") / "bits.png")], "folder"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, part):
    assert main(["schedules", *words]) in (2, 5)
    assert part in capsys.readouterr().err
