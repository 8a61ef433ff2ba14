"""Every plot with few, many, equal, extreme and missing values: texts cover nothing, and outliers flatten nothing."""

import itertools
import math

import pytest

from cpt_deploy.metric import ACCURACY, PERPLEXITY
from cpt_deploy.report import (
    ComparedGroup,
    LandscapePanel,
    SeedBand,
    SeedCurves,
    SweepPoint,
    plot_benchmark,
    plot_comparison,
    plot_curves,
    plot_landscapes,
    plot_range_test,
    plot_schedules,
    plot_seed_curves,
    plot_sweep,
)
from cpt_deploy.report.figures import line_style, point_style

NAN, LONG = math.nan, "a long name with 数字 in it " * 6
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def texts(figure):
    """Return all texts that a figure showed when it was saved."""
    found = [*figure.texts]
    for legend in figure.legends:
        found += [*legend.get_texts(), legend.get_title()]
    for axes in (axes for axes in figure.axes if axes.axison):
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def check_texts(figure):
    """Check that texts are inside of the figure and do not overlap."""
    boxes = [(text.get_text(), *text.get_window_extent().extents) for text in texts(figure)]
    assert boxes
    for text, left, bottom, right, top in boxes:
        inside = left > -1 and bottom > -1 and right < figure.bbox.width + 1 and top < figure.bbox.height + 1
        assert inside, f"{text!r} is cut off"
    for (text, l1, b1, r1, t1), (other, l2, b2, r2, t2) in itertools.combinations(boxes, 2):
        apart = min(r1, r2) - max(l1, l2) < 1 or min(t1, t2) - max(b1, b2) < 1
        assert apart, f"{text!r} overlaps {other!r}"


def curves(path, rows, **settings):
    header = "step,loss,accuracy,perplexity,bits,grad_bits,test_loss,test_accuracy,test_perplexity,calibrated\n"
    log = path.with_suffix(".csv")
    log.write_text(header + "".join(rows))
    return plot_curves(log, path, **settings)


def logged(losses):
    return [f"{step},{loss},0.5,{loss},{3 + step % 6},8,,,,\n" for step, loss in enumerate(losses, start=1)]


def compared(*groups, metric=ACCURACY):
    return [ComparedGroup(name, figures, cost, metric) for name, figures, cost in groups]


def seeded(name, losses, tested=(0.5,), deviation=None):
    def band(values):
        return SeedBand(range(1, len(values) + 1), values, deviation and [deviation] * len(values))

    return SeedCurves(name, band(losses), band([]), band(tested), range(len(losses)), [8] * len(losses))


def swept(qualities, milliseconds=lambda bits: 1.0):
    points = [
        SweepPoint(f"{bits}", series, quality, quality - 1, quality + 1, 10.0 * bits, milliseconds(bits))
        for bits, quality in enumerate(qualities, start=2)
        for series in ("activations at 8 bits", "activations at the weights' bits")
    ]
    labels = {"title": LONG, "size_label": "weights", "quality_label": "accuracy (%)", "latency_label": "one image"}
    return lambda path: plot_sweep(points, path, **labels, trained=95)


def benchmarked(threads, batches, models, growth, tail):
    entries = [
        {
            "threads": count, "batch": batch, "model": f"model {index}", "p50_ms": batch * growth**index,
            "p99_ms": batch * growth**index * tail, "bundle_speedup": growth**index,
        }
        for count in threads for batch in batches for index in range(models)
    ]  # fmt: skip
    return lambda path: plot_benchmark({"bundle": "runs/$net$/bundle-8bit", "latencies": entries}, path)


def landscape(*functions):
    panels = [
        LandscapePanel(f"{LONG} {index}", TICKS, [[loss(x, y) for x in TICKS] for y in TICKS], [[0.5] * 5] * 5)
        for index, loss in enumerate(functions)
    ]
    return lambda path: plot_landscapes(panels, path, title="Loss of 1,000 training images")


def line(count):
    panels = [LandscapePanel(f"run {n}", TICKS, [[n + x * x for x in TICKS]], [[0.5] * 5]) for n in range(count)]
    return lambda path: plot_landscapes(panels, path, title="Loss of 1,000 training images")


def at_bits(bits, accuracy, *, diverged=False):
    rise = {"before": 0.1, "after": 0.3, "rise": 0.2}
    return {"bits": bits, "accuracy": accuracy, "diverged": diverged, **rise}


def range_test(*precisions, found=None):
    return lambda path: plot_range_test({"min_bits": found, "precisions": precisions}, path, title=LONG)


PICTURES = {
    "curves": lambda path: curves(path, logged([2 / step for step in range(1, 300)]), title=LONG),
    "curves, one row": lambda path: curves(path, ["1,2,0.5,7,3,8,,,,\n", "1,,,,,,1.9,0.6,6,1\n"], bits=[3]),
    "curves, no row": lambda path: curves(path, []),
    "curves, equal, negative and NaN": lambda path: curves(path, logged([-1.5, -1.5, -1.5, NAN])),
    "curves, perplexity": lambda path: curves(
        path, logged([math.exp(12 / step) for step in range(1, 99)]), metric=PERPLEXITY
    ),
    "comparison, 40 runs": lambda path: plot_comparison(
        compared(*((f"schedule cosine, lr {n}", [0.9, 0.9 + n / 999], 100.0 + n) for n in range(40))), path
    ),
    "comparison, extremes": lambda path: plot_comparison(
        compared((LONG, [1e30], 1.0), ("b", [math.inf], 1e9), ("c", [3.0, 4.0], 5.0), metric=PERPLEXITY), path
    ),
    "seeds": lambda path: plot_seed_curves(
        [seeded(LONG, [2.0, 1.0], deviation=0.1), seeded("b", [NAN, 1.0]), seeded("c", [], ())], path
    ),
    "seeds, 40 groups": lambda path: plot_seed_curves(
        [seeded(f"batch_size {n}", [n / step for step in range(1, 60)]) for n in range(40)], path
    ),
    "sweep": swept([80, 93, 94.9, 95, 95, 95, 95.1]),
    "sweep, equal": swept([95] * 7),
    "sweep, outliers": swept([9] + [95] * 6, lambda bits: 1000.0 if bits == 3 else 1.0),
    "schedules": lambda path: plot_schedules({f"{LONG} {n}": [3, 4, 8, 8] * 9 for n in range(5)}, path, title=LONG),
    "schedules, one step": lambda path: plot_schedules({"static": [8]}, path),
    "benchmark, many": benchmarked([1, 2, 4], [1, 4, 8], 4, 1.5, 1.2),
    "benchmark, outliers": benchmarked([1], [1, 8], 3, 100.0, 500.0),
    "landscape": landscape(lambda x, y: 0.1 + x * x + y * y, lambda x, y: 0.2 + 9 * x * x),
    "landscape, equal": landscape(lambda x, y: 1.0),
    "landscape, NaN and negative": landscape(lambda x, y: NAN, lambda x, y: -1 if x > 0 else 1e8),
    "landscape, lines": line(40),
    "range test": range_test(*(at_bits(bits, [0.1 * bits] * 60) for bits in range(2, 9)), found=4),
    "range test, diverged": range_test(at_bits(2, [], diverged=True), at_bits(3, [0.1] * 4)),
}  # fmt: skip


@pytest.mark.filterwarnings("default:Glyph .* missing")  # measured outside of the function that draws
@pytest.mark.parametrize("name", PICTURES)
def test_texts_fit(name, tmp_path):
    check_texts(PICTURES[name](tmp_path / "picture.png"))


def test_an_outlier_is_counted_and_flattens_nothing(tmp_path):
    figure = curves(tmp_path / "curves.png", logged([1e7 if step == 50 else 2 / step for step in range(1, 300)]))
    loss = figure.axes[0]
    assert loss.get_title(loc="left") == "1 of 299 values lie outside, up to 1e+07"
    assert 2 < loss.get_ylim()[1] < 4


def test_values_that_are_not_finite_are_counted(tmp_path):
    figure = curves(tmp_path / "curves.png", logged([2.0, 1.0, NAN]))
    assert figure.axes[0].get_title(loc="left") == "1 of 3 values are not finite"


def test_a_single_value_is_marked(tmp_path):
    for axes in curves(tmp_path / "curves.png", logged([2.0])).axes:
        assert all(line.get_marker() != "" for line in axes.lines if len(line.get_xdata()) == 1)
    groups = [seeded("a", [2.0]), seeded("b", [3.0])]
    assert all(line.get_marker() for line in plot_seed_curves(groups, tmp_path / "seeds.png").axes[0].lines)


def test_every_run_is_in_the_legend_with_a_style_of_its_own(tmp_path):
    figure = PICTURES["seeds, 40 groups"](tmp_path / "seeds.png")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"batch_size {n}" for n in range(40)]
    drawn = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in figure.axes[0].lines]
    assert len(set(drawn)) >= 35
    assert len({(style["color"], style["marker"]) for style in map(point_style, range(77))}) == 77
    assert line_style(0, 1)["marker"]


def test_equal_points_are_all_seen(tmp_path):
    figure = plot_comparison(compared(("a", [0.9], 1.0), ("b", [0.9], 1.0)), tmp_path / "plot.png")
    first, second = [line.get_markersize() for line in figure.axes[0].lines if line.get_marker() in "os"]
    assert first > second


def test_each_panel_of_schedules_has_numbers_at_both_axes(tmp_path):
    figure = plot_schedules({f"schedule {n}": [3, 8] * 50 for n in range(5)}, tmp_path / "schedules.png")
    figure.draw_without_rendering()
    for axes in figure.axes[:5]:
        for axis in (axes.xaxis, axes.yaxis):
            shown = [tick.label1 for tick in axis.get_major_ticks()]
            assert any(label.get_visible() and label.get_text() == "0" for label in shown)


def test_a_tail_far_above_the_bars_is_cut_and_said(tmp_path):
    figure = benchmarked([1], [1], 2, 1.5, 500.0)(tmp_path / "plot.png")
    assert "to\n750" in "\n".join(text.get_text() for text in figure.axes[0].texts)
    assert figure.axes[0].get_ylim()[1] < 5


def test_labels_of_points_say_their_bits(tmp_path):
    figure = PICTURES["sweep"](tmp_path / "plot.png")
    for axes in figure.axes:
        assert sorted(text.get_text() for text in axes.texts) == sorted(f"{bits}" for bits in range(2, 9) for _ in "ab")
