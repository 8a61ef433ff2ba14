"""The run: all its parts in one object that `loop` and `finish` share."""

from dataclasses import dataclass

import torch

from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.loop.interruption import Interruption
from cpt_deploy.training.loop.loss_following import LossFollowing
from cpt_deploy.training.loop.progress import RunProgress
from cpt_deploy.training.loop.setup import RunObjects
from cpt_deploy.training.reporting.step_costs import StepCosts
from cpt_deploy.training.reports import TrainReporter
from cpt_deploy.training.run_directory.metrics_log import MetricsLog, NoLog
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.task import TrainingTask


@dataclass(frozen=True)
class Run:
    """A run.

    Args:
        task: The task: data, loss and evaluation.
        objects: Model, optimizer, schedules and cost meter.
        directory: Directory of its files.
        progress: Counts and times so far.
        log: Log of its metrics.
        reporter: Receives its events.
        interruption: Records signals that ask it to stop.
        process_group: The process group; only the main process writes and reports.
        synchronization: Keeps the models of all processes equal.
        costs: Measured costs of steps.
        following: Passes the training loss to adaptive schedules.
    """

    task: TrainingTask
    objects: RunObjects
    directory: RunDirectory
    progress: RunProgress
    log: MetricsLog | NoLog
    reporter: TrainReporter
    interruption: Interruption
    process_group: ProcessGroup
    synchronization: Synchronization
    costs: StepCosts
    following: LossFollowing

    def signal_of_any(self) -> int | None:
        """Return the signal that any process received, or `None`; every process must call it."""
        own = torch.tensor([float(self.interruption.signal_number or 0)])
        return int(self.process_group.gather(own).max()) or None
