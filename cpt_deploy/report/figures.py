"""Shared parts of all plots: the import of Matplotlib, colours, and figures as SVG elements for HTML pages."""

import html
import io
import re
from collections.abc import Mapping
from typing import Any

from cpt_deploy.errors import MissingExtraError

# From the palette of Okabe & Ito, which stays distinguishable with any colour blindness.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
YELLOW, SKY = "#E69F00", "#56B4E9"

_SVG_STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "svg.fonttype": "none",  # keep text as text: searchable, and a smaller file
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "legend.frameon": False,
}


def new_figure(width: float, height: float) -> Any:
    """Return an empty Matplotlib figure.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Expected Matplotlib, which draws the plots, but it is not installed",
            hint="pip install 'cpt-deploy[train]'",
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def plain(*panels: Any) -> None:
    """Give axes a light grid and no frame at the top and on the right."""
    for axes in panels:
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)


def figure_style() -> Any:
    """Return the Matplotlib context with the style of figures for a page."""
    new_figure(1, 1)
    from matplotlib import rc_context

    return rc_context(dict(_SVG_STYLE))


def to_svg(figure: Any, *, name: str, alternative: str) -> str:
    """Return a figure as an SVG element for HTML.

    Args:
        figure: The Matplotlib figure.
        name: A name that is unique in the page; it makes the element ids of several figures distinct.
        alternative: Text alternative of the figure, for readers who cannot see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({**_SVG_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    body = text[text.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Matplotlib numbers its groups from 1 in each figure.
    body = re.sub(r'<g id="([\w.]+)"', rf'<g id="{name}-\1"', body)
    label = html.escape(alternative, quote=True)
    return body.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
