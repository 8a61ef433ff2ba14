"""Which model is meant when none is named."""

import httpx2

from cpt_deploy.errors import UsageError


def only_model(names: list[str], url: httpx2.URL) -> str:
    """Return the name of the only model.

    Raises:
        UsageError: If there are several, or none.
    """
    if len(names) != 1:
        raise UsageError(
            f"Expected one model at {url}, but got {', '.join(names) or 'none'}",
            hint="name the model that you mean" if names else None,
        )
    return names[0]
