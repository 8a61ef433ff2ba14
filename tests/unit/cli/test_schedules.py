"""`cpt schedules`: the savings that Wolfe & Kyrillidis publish by group, own schedules, pictures."""

import json
import math
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
        "from cpt_deploy.precision import StaticSchedule\n\n"
        "def half(min_bits, max_bits):\n    return StaticSchedule(4)\n"
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
        (["CR", "--bits", "8"], "MIN-MAX"),
        (["CR", "--grad-bits", "wide"], "--grad-bits as MIN-MAX"),
        (["CR", "--recipe", "digits-quickstart"], "but got both"),
        (["CR", "--bits", "8-3"], "min_bits <= max_bits"),
        (["CR", "--plot", "bits.txt"], "ending"),
        (["CR", "--plot", str(Path("missing") / "bits.png")], "folder"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, part):
    assert main(["schedules", *words]) in (2, 5)
    assert part in capsys.readouterr().err


def test_gradients_that_cycle_cost_less(capsys):
    [entry] = listed(capsys, "CR", "--grad-bits", "6-8", "--cycles", "8", "--steps", "6400")
    bits = [round(3 + 2.5 * (1 - math.cos(math.pi * (step % 800) / 800))) for step in range(6400)]
    grads = [round(6 + 1 - math.cos(math.pi * (step % 800) / 800)) for step in range(6400)]
    spent = sum(fw * fw + 2 * fw * bw for fw, bw in zip(bits, grads, strict=True))
    static = sum(64 + 16 * bw for bw in grads)
    assert entry["saving"] == pytest.approx(1 - spent / static)


def test_progressive_bits_follow_a_loss_that_is_given(capsys, tmp_path):
    losses = tmp_path / "losses.txt"
    losses.write_text("\n".join(["1.0"] * 20))
    [alone] = listed(capsys, "progressive", "--steps", "200")
    [told] = listed(capsys, "progressive", "--steps", "200", "--losses", str(losses))
    assert (alone["follows_loss"], alone["shares"]) == (True, {"3": 1.0})
    assert told["follows_loss"] is False
    assert told["shares"] == {"3": 0.25, "4": 0.25, "6": 0.25, "8": 0.25}  # a turning point every five epochs


def test_epochs_of_a_log_are_the_periods(capsys, tmp_path):
    log = tmp_path / "metrics.csv"
    rows = "".join(f"{step},{step / 2},{2 - 0.5 * (step % 2)},\n" for step in range(1, 41))
    log.write_text("step,epoch,loss,test_loss\n" + rows + "40,20,,0.3\n")
    [entry] = listed(capsys, "progressive", "--steps", "40", "--losses", str(log))
    assert entry["shares"] == {"3": 0.25, "4": 0.25, "6": 0.25, "8": 0.25}


def test_all_schedules_of_a_recipe_are_shown(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "precision:\n  min_bits: 3\n  cycles: 4\n  grad_schedule: linear\n  grad_min_bits: 6\n"
        "  groups:\n    - {match: 'layer3.*', schedule: static, max_bits: 6}\n"
    )
    forward, group, gradients = listed(capsys, "--recipe", str(path), "--plot", str(tmp_path / "bits.png"))
    assert forward["name"] == "forward: cosine 3-8"
    assert (group["name"], group["shares"]) == ("layer3.*: static 3-6", {"6": 1.0})
    assert (gradients["name"], gradients["saving"]) == ("gradients: linear 6-8", None)
    assert (tmp_path / "bits.png").is_file()


def test_a_delayed_recipe_shows_the_whole_run_and_saves_nothing(capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("precision:\n  min_bits: 3\n  cycles: 32\n  delay: 0.75\n")
    forward, gradients = listed(capsys, "--recipe", str(path), "--steps", "256", "--plot", str(tmp_path / "bits.png"))
    assert forward["shares"]["32"] == gradients["shares"]["32"] == 0.75
    assert forward["saving"] < -10
    assert main(["schedules", "--recipe", str(path), "--steps", "256"]) == 0
    shown = capsys.readouterr().out
    assert "bits over the run" in shown
    [line] = [line for line in shown.splitlines() if "forward" in line]
    assert "████▁" in line
    assert "none" in line


@pytest.mark.parametrize(("length", "bounds"), [("steps: 64000", "3-8"), ("epochs: 20", "5-8")])
def test_bounds_left_to_the_length_are_shown(capsys, tmp_path, length, bounds):
    path = tmp_path / "mine.yaml"
    path.write_text(f"train:\n  {length}\n")
    assert listed(capsys, "--recipe", str(path))[0]["name"] == f"forward: cosine {bounds}"


def test_gradients_that_follow_the_loss_are_shown_as_they_run(capsys, tmp_path):
    path, losses = tmp_path / "mine.yaml", tmp_path / "losses.txt"
    path.write_text("precision:\n  grad_schedule: progressive\n  grad_min_bits: 3\n")
    losses.write_text("\n".join(["1.0"] * 20))
    _, gradients = listed(capsys, "--recipe", str(path), "--steps", "200", "--losses", str(losses))
    [alone] = listed(capsys, "progressive", "--steps", "200", "--losses", str(losses))
    assert gradients["shares"] == alone["shares"]


@pytest.mark.parametrize(
    ("content", "part"), [("", "finite losses"), ("1.0\ntwo\n", "losses of a run"), ("nan", "finite losses")]
)
def test_losses_that_are_none_are_one_clear_line(capsys, tmp_path, content, part):
    (tmp_path / "losses.txt").write_text(content)
    assert main(["schedules", "progressive", "--losses", str(tmp_path / "losses.txt")]) == 5
    assert part in capsys.readouterr().err
