"""Training curves of a group of runs: mean and standard deviation over its seeds, from their logs."""

import statistics
from collections.abc import Sequence

from cpt_deploy.errors import CptError, DataError
from cpt_deploy.precision import AdaptiveSchedule
from cpt_deploy.report import SeedBand, SeedCurves
from cpt_deploy.training.experiments.compared import FinishedRun, RunGroup
from cpt_deploy.training.run_directory.metrics_log import read_metrics
from cpt_deploy.training.run_directory.run_directory import RunDirectory

Rows = list[dict[str, str]]


def seed_curves(group: RunGroup) -> SeedCurves:
    """Return the training curves of a group from the logs of its runs.

    Runs may log at different intervals; a band has the steps that all of them logged.

    Raises:
        DataError: If a log is missing or damaged.
    """
    logs = [_rows(run) for run in group.runs]
    bit_steps, bits = _bits(group.runs[0], logs[0])
    return SeedCurves(
        group.label,
        seed_band(logs, "loss"),
        seed_band(logs, group.metric.name),
        seed_band([[row for row in rows if not row["calibrated"]] for rows in logs], f"test_{group.metric.name}"),
        bit_steps,
        bits,
        group.metric,
        group.runs[0].report.held_out,
    )


def seed_band(logs: Sequence[Rows], column: str) -> SeedBand:
    """Return mean and sample standard deviation of a column over several logs, at their common steps."""
    values = [{int(row["step"]): float(row[column]) for row in rows if row.get(column)} for rows in logs]
    steps = sorted(set(values[0]).intersection(*values[1:]))
    means = [statistics.fmean(log[step] for log in values) for step in steps]
    if len(logs) == 1:
        return SeedBand(steps, means, None)
    return SeedBand(steps, means, [statistics.stdev(log[step] for log in values) for step in steps])


def _rows(run: FinishedRun) -> Rows:
    path = RunDirectory(run.path).metrics
    try:
        return read_metrics(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected the log of a run at {path}, but got: {error}") from error


def _bits(run: FinishedRun, rows: Rows) -> tuple[list[int], list[int]]:
    """Return steps and forward bits: of every step, from the recipe's schedule.

    Of logged steps only, from the log, if the schedule depends on the loss or is no longer importable.
    """
    steps = run.report.steps
    try:
        schedule = run.recipe.precision.forward_schedule()
    except CptError:  # a user-defined schedule that can no longer be imported
        schedule = None
    if schedule is not None and not isinstance(schedule, AdaptiveSchedule):
        return list(range(steps)), [schedule.bits_at(step, steps) for step in range(steps)]
    logged = [(int(row["step"]), int(row["bits"])) for row in rows if row["bits"]]
    return [step for step, _ in logged], [bits for _, bits in logged]
