"""The output of `cpt datasets check`: the content of a data set, and all of its problems."""

from pathlib import Path

from cpt_cli.output import out
from cpt_deploy.errors import DataError

_SHOWN = 10


def show_dataset_check(name: str, root: Path | None) -> None:
    """Read all samples of a data set and print what is found.

    Args:
        name: A path, or another data set by its `data.name`.
        root: Folder of a known data set.

    Raises:
        DataError: If a problem prevents training.
    """
    from cpt_deploy.workflows import check_dataset

    check = check_dataset(name, root, reporter=out)
    out.fields(name, dict(check.sizes))
    columns, *rows = check.table
    out.table(tuple(columns), [tuple(row) for row in rows])
    for note in check.notes:
        out.note(note)
    for title, entries in check.problems.items():
        _listed(title, list(entries))
    out.result({**check.content, "errors": list(check.errors)})
    if check.errors:
        raise DataError(
            f"Expected a data set to train with in {name}, but found {'; '.join(check.errors)}", hint=check.repair
        )
    out.note("the data set can be trained on")


def _listed(title: str, lines: list[str]) -> None:
    if not lines:
        return
    out.warning(f"{title}: {len(lines):,}")
    for line in lines[:_SHOWN]:
        out.line(f"  {line}")
    if len(lines) > _SHOWN:
        out.line(f"  … and {len(lines) - _SHOWN:,} more; --json lists all")
