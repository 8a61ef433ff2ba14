"""Everything that a run consists of, in one object that the loop and the finish share."""

from dataclasses import dataclass

from cpt_deploy.training.interruption import Interruption
from cpt_deploy.training.metrics_log import MetricsLog
from cpt_deploy.training.progress import RunProgress
from cpt_deploy.training.reports import TrainReporter
from cpt_deploy.training.run_directory import RunDirectory
from cpt_deploy.training.setup import RunData, RunObjects


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        data: What it learns from.
        objects: What it changes.
        directory: Where its files go.
        progress: Where it stands.
        log: Where rows go.
        reporter: Who is told.
        interruption: What asks it to stop.
    """

    data: RunData
    objects: RunObjects
    directory: RunDirectory
    progress: RunProgress
    log: MetricsLog
    reporter: TrainReporter
    interruption: Interruption
