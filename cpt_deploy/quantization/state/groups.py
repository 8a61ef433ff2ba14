"""Assign roles to layers: scheduled precision, fixed precision (max_bits), or a group with its own bits."""

from collections.abc import Sequence, Set
from fnmatch import fnmatchcase

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import Role
from cpt_deploy.registry import nearest_names


def layer_roles(names: Sequence[str], config: QuantizationConfig, ends: Set[str] = frozenset()) -> dict[str, Role]:
    """Return the role of each layer.

    The first and the last layer have fixed precision if the configuration says so, whatever groups match them; each
    other layer belongs to the first group that matches its name, or else follows the schedule.

    Args:
        names: The layers, in the order of the graph.
        config: Groups and ends.
        ends: Further layers that have the role of the first and the last one.

    Raises:
        UsageError: If a group gets no layer; the hint lists the nearest names.
    """
    fixed = {names[0], names[-1], *ends} if config.ends == "fixed" else set()
    roles: dict[str, Role] = {}
    for name in names:
        matching = (group.name for group in config.groups if fnmatchcase(name, group.match))
        roles[name] = "fixed" if name in fixed else next(matching, "scheduled")
    for group in config.groups:
        if group.name not in roles.values():
            raise _empty(group.match, [name for name in names if fnmatchcase(name, group.match)], names, fixed)
    return roles


def _empty(pattern: str, matched: Sequence[str], names: Sequence[str], fixed: set[str]) -> UsageError:
    if not matched:
        return UsageError(
            f"Expected a pattern that matches layers of the model, but got {pattern!r}",
            hint=nearest_names(pattern, list(names)),
        )
    listed = ", ".join(matched[:3])
    if set(matched) <= fixed:
        return UsageError(
            f"Expected layers of scheduled precision, but {pattern!r} matches only {listed}, which has fixed precision",
            hint="precision.ends=scheduled lets the first and the last layer follow the schedule too",
        )
    return UsageError(
        f"Expected each group to have layers, but those of {pattern!r} ({listed}, …) belong to earlier groups",
        hint="a layer belongs to the first group that matches it",
    )
