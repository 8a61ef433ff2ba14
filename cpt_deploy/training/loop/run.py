"""Everything that a run consists of, in one object that the loop and the finish share."""

from dataclasses import dataclass

import torch

from cpt_deploy.training.distributed.process_group import Ranks
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.loop.interruption import Interruption
from cpt_deploy.training.loop.loss_following import LossFollowing
from cpt_deploy.training.loop.progress import RunProgress
from cpt_deploy.training.loop.setup import RunObjects
from cpt_deploy.training.reporting.reports import TrainReporter
from cpt_deploy.training.reporting.step_costs import StepCosts
from cpt_deploy.training.run_directory.metrics_log import MetricsLog, NoLog
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.task import TrainingTask


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        task: What it learns, and from what.
        objects: What it changes.
        directory: Where its files go.
        progress: Where it stands.
        log: Where rows go.
        reporter: Who is told.
        interruption: What asks it to stop.
        ranks: This process among those of the run; only the main one writes and tells.
        synchronization: What makes one model of those of all processes.
        costs: What steps really cost.
        following: What tells adaptive schedules the loss.
    """

    task: TrainingTask
    objects: RunObjects
    directory: RunDirectory
    progress: RunProgress
    log: MetricsLog | NoLog
    reporter: TrainReporter
    interruption: Interruption
    ranks: Ranks
    synchronization: Synchronization
    costs: StepCosts
    following: LossFollowing

    def signal_of_any(self) -> int | None:
        """Return the signal that a process got, or `None`; every process must ask."""
        own = torch.tensor([float(self.interruption.signal_number or 0)])
        return int(self.ranks.gather(own).max()) or None
