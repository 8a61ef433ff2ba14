"""Titles, legends and labels of points that fit: wrapped, placed where they cover nothing, or hidden."""

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any

SMALL = 8
"""Font size of legends and of labels inside of a plot, in points."""


def title_above(figure: Any, text: str) -> None:
    """Write a title over a figure, wrapped to its width."""
    if text:
        figure.suptitle(wrapped(text, int(12 * figure.get_figwidth())), fontsize=10)


def legend_below(figure: Any, *panels: Any, title: str = "") -> None:
    """Draw one legend of panels below all others, in as many columns as fit; the figure grows by its height."""
    found = [panel.get_legend_handles_labels() for panel in panels]
    handles, labels = ([entry for pair in found for entry in pair[place]] for place in (0, 1))
    if not labels:
        return
    width = figure.get_figwidth()
    labels = [wrapped(label, int(13 * width)) for label in labels]
    settings = {"loc": "outside lower center", "title": title or None, "fontsize": SMALL, "title_fontsize": SMALL}
    trial = figure.legend(handles, labels, ncols=1, **{**settings, "title": None})
    entry = trial.get_window_extent().width / figure.dpi + 2 * SMALL / 72  # with the space between columns
    trial.remove()
    columns = max(1, min(len(labels), int(width / entry)))
    legend = figure.legend(handles, labels, ncols=columns, **settings)
    figure.set_figheight(figure.get_figheight() + legend.get_window_extent().height / figure.dpi)


def label_points(axes: Any, labelled: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write labels next to points, each at the nearest place where it covers neither a label nor a point.

    Args:
        axes: Axes whose limits are final; the figure is laid out here.
        labelled: Text, position in data coordinates, and colour of each point.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    spots = [tuple(axes.transData.transform(place)) for _, place, _ in labelled]
    taken = [(x - 4 * pixels, y - 4 * pixels, x + 4 * pixels, y + 4 * pixels) for x, y in spots]
    frame = axes.get_window_extent().extents
    for (text, place, colour), spot in zip(labelled, spots, strict=True):
        if not _inside((*spot, *spot), frame):  # one of the values outside of the axes
            continue
        note = axes.annotate(text, place, (0, 0), textcoords="offset points", fontsize=SMALL, color=colour)
        extent = note.get_window_extent()
        wide, high = extent.width, extent.height
        candidates = [
            (spot[0] + dx * pixels - wide * left, spot[1] + dy * pixels - high / 2)
            for distance in (7, 14, 22, 32, 44, 58, 74)
            for dx, dy, left in (
                (distance, distance * 0.7, 0), (distance, -distance * 0.7, 0), (-distance, distance * 0.7, 1),
                (-distance, -distance * 0.7, 1), (0, distance * 1.3, 0.5), (0, -distance * 1.3, 0.5),
            )
        ]  # fmt: skip
        boxes = [(x, y, x + wide, y + high) for x, y in candidates]
        free = [box for box in boxes if _inside(box, frame) and not any(_overlap(box, other) for other in taken)]
        box = free[0] if free else boxes[0]
        taken.append(box)
        note.set_position(((box[0] - spot[0]) / pixels, (box[1] - spot[1]) / pixels))


def hide_overlapping(labels: Sequence[Any]) -> None:
    """Hide those of a plot's labels that would cover an earlier one; the figure is laid out here."""
    shown: list[Sequence[float]] = []
    if labels:
        labels[0].get_figure().draw_without_rendering()
    for label in labels:
        box = label.get_window_extent().extents
        label.set_visible(not any(_overlap(box, other) for other in shown))
        shown += [box] if label.get_visible() else []


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _inside(box: Sequence[float], frame: Sequence[float]) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def shortened(name: str, length: int = 28) -> str:
    """Return a name, with its middle left out if it is longer than `length` characters."""
    if len(name) <= length:
        return name
    kept = length - 1
    return f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"


def wrapped(text: str, width: int, lines: int = 3) -> str:
    """Return a text in lines of at most `width` characters; the middle of one that needs too many is left out."""
    # Characters of the East Asian scripts are twice as wide as Latin ones.
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    width = max(8, int(width * len(text) / (len(text) + wide))) if text else width
    return "\n".join(
        line for part in shortened(text, width * lines - width // 4).splitlines() for line in textwrap.wrap(part, width)
    )
