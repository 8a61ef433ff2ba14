"""The limit of the files that this process may open, of which each connection is one."""

import resource

from cpt_serving.settings import ServeSettings

_OTHER_FILES = 64
"""Files that are open besides connections: libraries, logs, models that are read, connections being refused."""


def possible_connections(settings: ServeSettings) -> tuple[int, int]:
    """Raise this process's limit of open files as far as connections need it.

    Beyond the limit, connections would wait without an answer, and files of models could not be opened.

    Returns:
        How many connections are possible on each port, and the number of files that the process may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ports, wanted = (1 if settings.grpc_port is None else 2), settings.max_connections
    needed = ports * wanted + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, soft
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return max(1, (allowed - _OTHER_FILES) // ports), allowed
