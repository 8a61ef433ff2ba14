"""A whole run: data, model, loop, finish. Prints nothing; a reporter is told what happens."""

from pathlib import Path

from cpt_deploy.errors import RunInterruptedError, TrainingDivergedError
from cpt_deploy.precision import relative_cost
from cpt_deploy.recipe import Recipe
from cpt_deploy.training.checkpoints import read_checkpoint
from cpt_deploy.training.finish import draw_curves, finish
from cpt_deploy.training.interruption import Interruption
from cpt_deploy.training.loop import TrainingLoop
from cpt_deploy.training.metrics_log import MetricsLog
from cpt_deploy.training.progress import RunProgress
from cpt_deploy.training.randomness import seeded
from cpt_deploy.training.reports import RunReport, SilentReporter, TrainPlan, TrainReporter
from cpt_deploy.training.run import Run
from cpt_deploy.training.run_directory import RunDirectory
from cpt_deploy.training.run_state import restore
from cpt_deploy.training.setup import RunData, RunObjects, build_objects, load_data


def train(recipe: Recipe, run_dir: Path, *, resume: bool = False, reporter: TrainReporter | None = None) -> RunReport:
    """Train a model with cyclic precision and leave everything in a run directory.

    The same recipe gives the same result, and a resumed run the same as an uninterrupted one.

    Args:
        recipe: All settings.
        run_dir: The directory of the run; new or empty, unless the run is resumed.
        resume: Go on from the last checkpoint (from the start if there is none); a finished run is left alone.
        reporter: Who is told about the run; nobody by default.

    Returns:
        The report, which is in `report.json` too.

    Raises:
        UsageError: If a setting does not fit, or the directory is in use.
        DataError: If the data set, a checkpoint or the disk is at fault.
        TrainingDivergedError: If the loss becomes NaN or infinite.
        RunInterruptedError: After SIGINT or SIGTERM; the state is saved.
    """
    directory = RunDirectory(run_dir)
    reporter = reporter or SilentReporter()
    with seeded(recipe.seed, deterministic=recipe.train.deterministic), Interruption() as interruption:
        data = load_data(recipe)
        if resume:
            directory.check_resumable(data.recipe)
            if directory.report.is_file():
                return RunReport.read(directory.report)
        objects = build_objects(data)
        progress = RunProgress()
        if not resume:
            directory.begin(data.recipe)
        elif directory.last.is_file():
            progress = _resume(objects, directory)
        reporter.start(_plan(data, objects, directory.path, progress.step))
        log = MetricsLog(directory, progress.step, after_evaluation=progress.evaluated_step == progress.step)
        run = Run(data, objects, directory, progress, log, reporter, interruption)
        try:
            TrainingLoop(run).run()
            report = finish(run)
        except (RunInterruptedError, TrainingDivergedError):
            draw_curves(run)
            raise
        finally:
            log.close()
    reporter.finished(report)
    return report


def _resume(objects: RunObjects, directory: RunDirectory) -> RunProgress:
    state = restore(read_checkpoint(directory.last), objects.model, objects.optimizer, objects.averaged)
    objects.meter.load_state_dict(state.pop("meter"))
    return RunProgress.from_state_dict(state)


def plan_run(recipe: Recipe, run_dir: Path) -> TrainPlan:
    """Return what a run would do, without writing anything.

    Raises:
        CptError: If data, model or settings do not fit; what `train` would say.
    """
    data = load_data(recipe)
    return _plan(data, build_objects(data), run_dir, 0)


def _plan(data: RunData, objects: RunObjects, run_dir: Path, first_step: int) -> TrainPlan:
    layers = objects.model.layers()
    return TrainPlan(
        run_dir=run_dir,
        recipe=data.recipe,
        device=str(objects.device),
        parameters=objects.parameters,
        macs=sum(layer.macs for layer in layers),
        layers=objects.layers_by_role,
        train_images=len(data.train),
        test_images=len(data.test),
        classes=len(data.train.classes),
        steps_per_epoch=data.steps_per_epoch,
        total_steps=data.total_steps,
        first_step=first_step,
        relative_cost=relative_cost(
            objects.forward, objects.backward, data.total_steps, reference_bits=data.recipe.precision.upper
        ),
    )
