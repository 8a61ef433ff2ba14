"""Shared parts of all plots: style, line styles, limits that outliers do not stretch, legends and labels that fit.

Functions that draw a picture are decorated with `picture` and end with `save`; they return the Matplotlib figure.
"""

import functools
import html
import io
import logging
import math
import re
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cpt_deploy.errors import DataError, MissingExtraError, UsageError
from cpt_deploy.report.labels import SMALL

P = ParamSpec("P")
R = TypeVar("R")

# From the palette of Okabe & Ito, which stays distinguishable with any colour blindness.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
YELLOW, SKY = "#E69F00", "#56B4E9"

FORMATS = (".png", ".svg", ".pdf")
_COLOURS = (BLUE, ORANGE, GREEN, PINK, GREY, YELLOW, SKY)
_MARKERS = "os^DvPX*<>h"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKED = 40
"""Lines of at most this many points mark each of them, so that one with a single point is visible."""

_STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",  # keep text as text: searchable, and a smaller file
    "text.parse_math": False,  # names may have dollar signs
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
# Fonts with Chinese, Japanese and Korean characters, of which Matplotlib's own font has none.
_CJK_FONTS = re.compile(r"CJK|Source Han|WenQuanYi|IPA\w*Gothic|Droid Sans Fallback|Hiragino|PingFang|YaHei|Yu Gothic")


def require_matplotlib() -> None:
    """Check that plots can be drawn.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # without a home it keeps its fonts in a temporary folder, which works as well
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "Expected Matplotlib, which draws the plots, but it is not installed",
            extra="train",
        ) from error
    finally:
        logger.setLevel(level)


def check_plot_path(destination: Path) -> None:
    """Check, before anything is measured, that a plot can be drawn and written to a path.

    Raises:
        MissingExtraError: If Matplotlib is not installed.
        UsageError: If the suffix is not that of a supported image format.
        DataError: If its folder does not exist.
    """
    require_matplotlib()
    if destination.suffix.lower() not in FORMATS:
        raise UsageError(f"Expected a file ending in {', '.join(FORMATS)}, but got {destination.name}")
    if not destination.parent.is_dir():
        raise DataError(f"Expected a folder {destination.parent} to write the plot to, but there is none")


def picture(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws: it has the style of all plots, and no glyph that a font lacks is warned of."""

    @functools.wraps(draw)
    def run(*args: P.args, **settings: P.kwargs) -> R:
        require_matplotlib()
        from matplotlib import rc_context

        with rc_context({**_STYLE, "font.family": _fonts()}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
            return draw(*args, **settings)

    return run


@functools.cache
def _fonts() -> list[str]:
    from matplotlib.font_manager import fontManager

    return ["DejaVu Sans", *sorted({font.name for font in fontManager.ttflist if _CJK_FONTS.search(font.name)})]


def new_figure(width: float, height: float) -> Any:
    """Return an empty Matplotlib figure, width × height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130)


def save(figure: Any, destination: Path) -> Any:
    """Write a figure in the format of the file's suffix, and return it."""
    figure.savefig(destination)
    return figure


def line_style(index: int, points: int = _MARKED + 1) -> dict[str, Any]:
    """Return colour, dashes and marker of the index-th line; lines of few points mark each of them."""
    few = points <= _MARKED
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "linestyle": _DASHES[index % len(_DASHES)],
        "marker": _MARKERS[index % len(_MARKERS)] if few or index >= len(_COLOURS) else "",
        "markevery": 1 if few else points // 8,
        "markersize": 4,
    }


def point_style(index: int) -> dict[str, Any]:
    """Return colour and marker of the index-th series of a plot of points; 77 series have different ones."""
    colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % len(_MARKERS)]
    # of different sizes, so that equal points are seen
    return {"color": colour, "marker": marker, "linestyle": "", "markersize": 8 - 1.5 * (index % 4), "zorder": 3}


def grids(*panels: Any, axis: str = "both") -> None:
    """Give axes a light grid."""
    for axes in panels:
        axes.grid(visible=True, axis=axis)


def fit(
    axes: Any,
    values: Sequence[float],
    *,
    axis: str = "y",
    zero: bool = False,
    log: bool = False,
    reaches: Sequence[tuple[float, float]] | None = None,
) -> None:
    """Choose limits and scale of an axis so that the bulk of the values can be told apart.

    Single values that would flatten all others are left outside. The title of the axes says how many these are, and
    how many values are not finite. Positive values over several orders of magnitude get a logarithmic axis.

    Args:
        axes: Axes whose lines or points have these values.
        values: All values that are drawn.
        axis: "x" or "y".
        zero: Whether the axis begins at 0, so that small differences do not look large.
        log: Whether positive values get a logarithmic axis over any range.
        reaches: The lower and upper end of the error bar of each value; the value itself if None.
    """
    reached = [(value, value) for value in values] if reaches is None else reaches
    finite = [(value, *ends) for value, ends in zip(values, reached, strict=True) if math.isfinite(value)]
    notes = [f"{len(values) - len(finite)} of {len(values)} values are not finite"] if len(finite) < len(values) else []
    if finite:
        least, most = _bulk([value for value, *_ in finite], log=log)
        kept = [entry for entry in finite if least <= entry[0] <= most]
        if len(kept) < len(finite):
            farthest = max((value for value, *_ in finite if not least <= value <= most), key=abs)
            notes.append(f"{len(finite) - len(kept)} of {len(finite)} values lie outside, up to {farthest:.3g}")
        drawn = [end for entry in kept for end in entry if math.isfinite(end)]
        limit(axes, axis, min(drawn), max(drawn), zero=zero, log=log)
    elif not values:
        notes = ["no values yet"]
        getattr(axes, f"set_{axis}ticks")([])
    notes = list(filter(None, [axes.get_title(loc="left"), *notes]))
    axes.set_title("; ".join(notes), loc="left", fontsize=SMALL)


def _bulk(values: Sequence[float], *, log: bool) -> tuple[float, float]:
    """Return the range of the values without a few that lie so far away that the others could not be told apart."""
    if len(values) < 4 or (log and min(values) > 0):
        return min(values), max(values)
    median = statistics.median(values)
    near = sorted(values, key=lambda value: abs(value - median))[: -max(1, len(values) // 50)]
    # Of few values each is a result of its own, which is left out only if the others would look equal beside it.
    reach = (8 if len(values) >= 20 else 50) * max(max(near) - min(near), 1e-3 * abs(median))
    kept = [value for value in values if min(near) - reach <= value <= max(near) + reach]
    return min(kept), max(kept)


def limit(axes: Any, axis: str, low: float, high: float, *, zero: bool = False, log: bool = False) -> None:
    """Set the limits of an axis to two values and a margin; see `fit`."""
    limits = getattr(axes, f"set_{axis}lim")
    if low > 0 and (log or high > 50 * low):
        margin = 1.1 if high < 10 * low else 1.5
        _decades(axes, axis, low / margin, high * margin)
        return
    bottom = min(0.0, low) if zero else low
    # Equal values differ by rounding only; without a minimum width the ticks would have ten digits.
    margin = max(0.08 * (high - bottom), 0.01 * max(abs(high), abs(bottom)), 1e-9)
    limits(bottom if zero and bottom == 0 else bottom - margin, high + margin)


def _decades(axes: Any, axis: str, low: float, high: float) -> None:
    """Use a logarithmic axis with plain numbers at 1, 2 and 5 of each decade, or at powers of 10 if these are many."""
    from matplotlib.ticker import LogLocator, NullFormatter

    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low, high)
    own = getattr(axes, f"{axis}axis")
    own.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,), numticks=9))
    own.set_major_formatter(lambda value, _: f"{value:g}")
    own.set_minor_formatter(NullFormatter())


def whole_numbers(axes: Any, axis: str = "y") -> None:
    """Have ticks at whole numbers only, of bits or steps."""
    from matplotlib.ticker import MaxNLocator

    getattr(axes, f"{axis}axis").set_major_locator(MaxNLocator("auto", integer=True))


def to_svg(figure: Any, *, name: str, alternative: str) -> str:
    """Return a figure as an SVG element for HTML.

    Args:
        figure: The Matplotlib figure.
        name: A name that is unique in the page; it makes the element ids of several figures distinct.
        alternative: Text alternative of the figure, for readers who cannot see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Matplotlib numbers its groups from 1 in each figure.
    body = re.sub(r'<g id="([\w.]+)"', rf'<g id="{name}-\1"', body)
    label = html.escape(alternative, quote=True)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
