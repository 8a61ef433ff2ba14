"""How errors quote what a client sent: a short beginning of it, whatever its size and depth."""

import difflib
import reprlib
from collections.abc import Iterable


def shown(value: object) -> str:
    """Return a short text for a value; unlike `repr`, its cost does not grow with the value."""
    # Names of tensors come here with every request.
    return repr(value) if type(value) is str and len(value) < _SHORT.maxstring - 2 else _SHORT.repr(value)


def near_name(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` for a name that resembles a known one, else nothing."""
    near = difflib.get_close_matches(name[:100], list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 4
_SHORT.maxstring = _SHORT.maxother = 80
