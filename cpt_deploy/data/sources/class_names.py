"""Read files that name classes."""

from pathlib import Path

from cpt_deploy.errors import DataError


def read_names(file: Path) -> list[str]:
    """Return the lines of a file of names.

    Raises:
        DataError: If it cannot be read or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected names of classes in UTF-8 in {file}, but got: {error}") from error
