"""Quoting values that a client sent in errors: a short prefix, whatever their size and depth."""

import difflib
import reprlib
from collections.abc import Iterable


def shown(value: object) -> str:
    """Return a short text of a value; unlike `repr`, at a cost that does not grow with the value."""
    # Fast path for the names of tensors, which are shown in every request.
    return repr(value) if type(value) is str and len(value) < _SHORT.maxstring - 2 else _SHORT.repr(value)


def near_name(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` for a name that resembles a known one, else an empty text."""
    near = difflib.get_close_matches(name[:100], list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxstring = _SHORT.maxother = 80
