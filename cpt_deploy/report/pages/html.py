"""Build self-contained HTML pages: escaped text, tables that scroll on a phone, figures, and the style sheet."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem 1rem 3rem; background: #fff; color: #1c1c1c;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .5rem; padding-top: .75rem; border-top: 1px solid #ddd; }
p { margin: .5rem 0; max-width: 46rem; }
.lead { color: #555; }
.verdict { border-left: .5rem solid; border-radius: .25rem; padding: .75rem 1rem; margin: 1rem 0; }
.verdict strong { font-size: 1.15rem; }
.verdict ul { margin: .5rem 0 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.passed { border-color: #0a7d4f; background: #eaf6f0; }
.failed { border-color: #b3261e; background: #fcedec; }
.undecided { border-color: #9a6700; background: #fff8e5; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; padding: 0; }
.figures div { border: 1px solid #ddd; border-radius: .4rem; padding: .6rem .8rem; }
.figures dt { font-size: .85rem; color: #555; }
.figures dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures .small { display: block; font-size: .8rem; font-weight: 400; color: #555; }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 2rem;
  align-items: start; }
.beside > * { min-width: 0; }
figure { margin: .5rem 0; }
figure svg { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #555; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; margin: .5rem 0; }
.caption { font-size: .85rem; color: #555; margin: 1rem 0 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
thead th { border-bottom: 2px solid #bbb; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 7.5rem; overflow-wrap: break-word; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.facts th { white-space: nowrap; font-weight: 600; }
code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .85em; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; font-size: .85rem; color: #555; }
@media (max-width: 34rem) { .facts, .facts tbody, .facts tr, .facts th, .facts td { display: block; border: 0; }
  .facts tr { border-bottom: 1px solid #e6e6e6; padding: .3rem 0; } .facts th, .facts td { padding: 0; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-after: avoid; }
  figure, tr, .verdict, .figures { break-inside: avoid; } .scroll { overflow: visible; }
  .verdict { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        title: Its heading.
        number: Whether it has numbers, which are right-aligned.
    """

    title: str
    number: bool = True


def escape(value: object) -> str:
    """Return a value as text that is safe in HTML."""
    return html.escape(str(value), quote=True)


def table(caption: str, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> str:
    """Return a table whose first cell of each row is the row's heading.

    Args:
        caption: Its caption, plain text.
        columns: Its columns.
        rows: Cells as plain values.
    """
    head = "".join(f'<th scope="col"{_align(column)}>{escape(column.title)}</th>' for column in columns)
    body = []
    for row in rows:
        first, *rest = zip(columns, row, strict=True)
        cells = [f'<th scope="row"{_align(first[0])}>{escape(first[1])}</th>']
        cells += [f"<td{_align(column)}>{escape(value)}</td>" for column, value in rest]
        body.append(f"<tr>{''.join(cells)}</tr>")
    # A scrollable region must be reachable by keyboard.
    return (
        f'<p class="caption">{escape(caption)}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody></table></div>"
    )


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Return a table of names (plain text) and values (HTML)."""
    body = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in rows)
    return f'<table class="facts"><tbody>\n{body}\n</tbody></table>'


def figure(svg: str, caption: str) -> str:
    """Return a figure with a caption of plain text."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def page(title: str, body: str) -> str:
    """Return a complete, self-contained HTML document.

    Args:
        title: Its title, plain text.
        body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _align(column: Column) -> str:
    return ' class="number"' if column.number else ""
