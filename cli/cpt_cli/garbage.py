"""How often a command looks for garbage, objects that refer to each other but are reached from nowhere."""

import atexit
import gc

_COLLECT_AFTER = 10_000
"""New objects before garbage is looked for. Importing torch makes hundreds of thousands that stay; with Python's 700
they are looked through so often that it takes a tenth of a short command."""
_USUAL = gc.get_threshold()


def look_less_often() -> None:
    """Look for garbage less often, and not once more at the end of the process, when all memory is given back anyway.

    With torch that last look takes a fifth of the time of its import.
    """
    gc.set_threshold(_COLLECT_AFTER, *_USUAL[1:])
    atexit.unregister(gc.freeze)  # of an earlier command in this process
    atexit.register(gc.freeze)


def look_as_usual() -> None:
    """Look for garbage as often as Python does: each look is short then, and the slowest requests wait for one."""
    gc.set_threshold(*_USUAL)
