"""Assign precision groups to layers: scheduled precision, fixed precision (max_bits), or bits of their own."""

from collections.abc import Sequence, Set
from fnmatch import fnmatchcase

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.state.config import QuantizationConfig
from cpt_deploy.quantization.state.precision_state import PrecisionGroup
from cpt_deploy.registry import nearest_names


def groups_of_layers(
    names: Sequence[str], config: QuantizationConfig, ends: Set[str] = frozenset()
) -> dict[str, PrecisionGroup]:
    """Return the group of each layer.

    The first and the last layer have fixed precision if the configuration says so, whatever groups match them; each
    other layer belongs to the first group that matches its name, or else follows the schedule.

    Args:
        names: The layers, in the order of the graph.
        config: Groups and ends.
        ends: Further layers with the precision of the first and the last one.

    Raises:
        UsageError: If a group gets no layer; the hint lists the nearest names.
    """
    fixed = {names[0], names[-1], *ends} if config.ends == "fixed" else set()
    groups: dict[str, PrecisionGroup] = {}
    for name in names:
        matching = (group.name for group in config.groups if fnmatchcase(name, group.match))
        groups[name] = "fixed" if name in fixed else next(matching, "scheduled")
    for group in config.groups:
        if group.name not in groups.values():
            raise _empty(group.match, [name for name in names if fnmatchcase(name, group.match)], names, fixed)
    return groups


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
