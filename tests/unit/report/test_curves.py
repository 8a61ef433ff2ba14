import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cpt_deploy.report import plot_curves

HEADER = "step,loss,accuracy,bits,grad_bits,test_loss,test_accuracy,calibrated\n"


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = [f"{step},{2 / step},{1 - 1 / step},{3 + step % 6},8,,,\n" for step in range(1, 30)]
    path.write_text(HEADER + "".join(rows) + "29,,,,,0.3,0.9,\n29,,,,,0.2,0.91,1\n")
    return path


def has_color(path, color):
    wanted = np.array([int(color[index : index + 2], 16) for index in (1, 3, 5)])
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return bool((np.abs(pixels - wanted).max(axis=-1) < 12).any())


def test_picture_shows_all_curves(metrics, tmp_path):
    plot_curves(metrics, tmp_path / "curves.png", title="a run", bits=[3, 4, 8] * 10, grad_bits=[8] * 30)

    for color in ("#0072B2", "#D55E00", "#009E73", "#CC79A7"):
        assert has_color(tmp_path / "curves.png", color)


@pytest.mark.parametrize("bits", [None, [8], list(range(2, 9)) * 5000], ids=["logged", "one step", "long run"])
def test_bits_of_any_length(metrics, tmp_path, bits):
    plot_curves(metrics, tmp_path / "curves.png", bits=bits, grad_bits=bits)

    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 800


def test_run_without_a_row_yet_has_a_picture(tmp_path):
    (tmp_path / "metrics.csv").write_text(HEADER)

    plot_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")

    assert (tmp_path / "curves.png").is_file()


def test_same_metrics_give_the_same_picture(metrics, tmp_path):
    for name in ("a.png", "b.png"):
        plot_curves(metrics, tmp_path / name)

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_importing_loads_neither_torch_nor_matplotlib():
    code = "import sys, cpt_deploy.report; sys.exit(bool({'torch', 'matplotlib'} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
