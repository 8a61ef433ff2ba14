"""The plot of a benchmark is written in every format, and what prevents it is said before anything is measured."""

import sys

import pytest
from PIL import Image

from cpt_deploy.errors import DataError, MissingExtraError, UsageError
from cpt_deploy.report import check_plot_path, plot_benchmark

REPORT = {
    "bundle": "network with $signs$",
    "latencies": [
        {
            "threads": threads, "batch": batch, "model": model, "p50_ms": 1.0 * batch, "p99_ms": 2.0 * batch,
            "bundle_speedup": 1.0,
        }
        for threads in (1, 2)
        for batch in (1, 8)
        for model in ("bundle", "float32", "onnxruntime static")
    ],
}  # fmt: skip


def test_a_png_is_a_picture(tmp_path):
    path = tmp_path / "plot.png"
    check_plot_path(path)
    plot_benchmark(REPORT, path)
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=2**24)}
    assert {(0xD5, 0x5E, 0x00), (0xB8, 0xB8, 0xB8), (0x00, 0x72, 0xB2)} <= colours


def test_an_svg_says_the_ratios(tmp_path):
    path = tmp_path / "plot.svg"
    plot_benchmark(REPORT, path)
    text = path.read_text()
    assert text.count("1.00x") == 8
    assert "network with $signs$" in text


def test_what_prevents_a_plot_is_said_first(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"\.png, \.svg, \.pdf"):
        check_plot_path(tmp_path / "plot.txt")
    with pytest.raises(DataError, match="nowhere"):
        check_plot_path(tmp_path / "nowhere" / "plot.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError):
        check_plot_path(tmp_path / "plot.png")
