"""The plot of a family: a picture with a point for each export."""

from pathlib import Path

from PIL import Image

from cpt_deploy.report import SweepPoint, plot_sweep


def test_it_draws_a_picture(tmp_path: Path) -> None:
    points = [
        SweepPoint(f"{bits}", series, 90 + bits, 85, 99, 10.0 * bits, 1.0)
        for bits in (3, 8)
        for series in ("activations at 8 bits", "activations at the weights' bits")
    ]
    labels = {"size_label": "weights", "quality_label": "accuracy (%)", "latency_label": "one image"}
    plot_sweep(points, tmp_path / "family.png", title="net", **labels, trained=95)
    with Image.open(tmp_path / "family.png") as image:
        assert image.size == (1200, 540)
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50
