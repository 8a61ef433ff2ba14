"""Format values for people: sizes, counts, durations, shares, paths, and a series as one line of blocks."""

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_BLOCKS = "▁▂▃▄▅▆▇█"
_FEW = 12
"""Numbers of one output that are written out."""


def size(size_bytes: float) -> str:
    """Return a size in bytes with a decimal unit, "1.24 MB"."""
    return _scaled(size_bytes, 1000.0, ("B", "kB", "MB", "GB", "TB"))


def count(number: float) -> str:
    """Return a count with a decimal prefix, "269.7 K" or "1.2 T"."""
    return _scaled(number, 1000.0, ("", "K", "M", "G", "T", "P", "E")).strip()


def _scaled(value: float, base: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.0f} {unit}" if unit == units[0] else f"{value:.2f} {unit}"
        value /= base
    return f"{value:.2f} {units[-1]}"


def counted(number: int, thing: str, things: str | None = None) -> str:
    """Return a number with what it counts, "1 class" or "1,000 classes"; the plural is with an s if none is given."""
    return f"{number:,} {thing if number == 1 else things or thing + 's'}"


def figure(value: float) -> str:
    """Return a number with at most three significant digits and no exponent: "0.00306", "1.56", "164", "64,000"."""
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if digits else text


def values(value: Any) -> str:
    """Return a number, a text or a nested list of numbers, rounded; of many numbers the sizes and the range."""
    sizes: list[int] = []
    inner = value
    while isinstance(inner, list) and inner:
        sizes.append(len(inner))
        inner = inner[0]
    if math.prod(sizes) <= _FEW or not isinstance(inner, int | float):
        return _rounded(value)
    flat = value
    for _ in sizes[1:]:
        flat = [number for part in flat for number in part]
    return f"{' x '.join(map(str, sizes))} values, {_rounded(min(flat))} to {_rounded(max(flat))}"


def _rounded(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def duration(seconds: float) -> str:
    """Return a duration in its natural units, "850 ms", "12.3 s", "4 min 05 s" or "2 h 03 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def share(fraction: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage, or a dash for None."""
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"


def sparkline(values: Sequence[float], width: int = 64) -> str:
    """Return values as one line of block characters, sampled evenly down to `width` of them.

    The lowest value gets the lowest block and the highest the full one; equal values are all drawn full.
    """
    if not values:
        return ""
    columns = min(width, len(values))
    sampled = [values[index * len(values) // columns] for index in range(columns)]
    lowest, highest = min(sampled), max(sampled)
    if lowest == highest:
        return _BLOCKS[-1] * columns
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - lowest) / (highest - lowest) * steps)] for value in sampled)


def printable(text: str) -> str:
    r"""Return a text with control characters, which a terminal obeys, written out as `\x1b`; line breaks stay."""
    return text.translate(_CONTROLS)


def name(text: str) -> str:
    """Return a name from a file of unknown origin as one printable line."""
    return printable(text).replace("\n", "\\n")


def path(location: Path) -> str:
    """Return a path as a user would type it: relative to the working directory if it is below it."""
    resolved = location.resolve()
    here = Path.cwd().resolve()
    return str(resolved.relative_to(here)) if resolved.is_relative_to(here) else str(location)


def argument(location: Path) -> str:
    """Return a path as a word of a command line that can be typed: like `path`, in quotes where it needs them."""
    return shlex.quote(path(location))
