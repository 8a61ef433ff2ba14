"""Training runs: train a recipe into a run directory, resumable at any step, and load finished runs."""

from cpt_deploy.training.distributed.process_group import ProcessGroup, choose_device
from cpt_deploy.training.experiments.compared import RunGroup, group_runs, read_finished_run
from cpt_deploy.training.experiments.range_test import RangeTest, range_test
from cpt_deploy.training.experiments.seed_curves import seed_curves
from cpt_deploy.training.experiments.trials import TrialOutcome, TrialQueue
from cpt_deploy.training.loop.interruption import Interruption
from cpt_deploy.training.loop.setup import prepare_network
from cpt_deploy.training.loop.trainer import plan_run, train
from cpt_deploy.training.reports import (
    Evaluation,
    Pretrained,
    ProfileReport,
    RunReport,
    StepProgress,
    TrainPlan,
    TrainReporter,
)
from cpt_deploy.training.run_directory.files import disk_errors, write_atomically
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.run_directory.saved_runs import TrainedRun, load_run
from cpt_deploy.training.task import Final, StepOutcome, Stop, TrainingTask

__all__ = [
    "Evaluation",
    "Final",
    "Interruption",
    "Pretrained",
    "ProcessGroup",
    "ProfileReport",
    "RangeTest",
    "RunDirectory",
    "RunGroup",
    "RunReport",
    "StepOutcome",
    "StepProgress",
    "Stop",
    "TrainPlan",
    "TrainReporter",
    "TrainedRun",
    "TrainingTask",
    "TrialOutcome",
    "TrialQueue",
    "choose_device",
    "disk_errors",
    "group_runs",
    "load_run",
    "plan_run",
    "prepare_network",
    "range_test",
    "read_finished_run",
    "seed_curves",
    "train",
    "write_atomically",
]
