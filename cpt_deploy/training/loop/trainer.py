"""Train a model from a recipe: data, model, loop, finish. Prints nothing; events go to a reporter."""

from contextlib import ExitStack, nullcontext
from pathlib import Path

from cpt_deploy import readable
from cpt_deploy.errors import CheckpointError, ProcessLostError, RunInterruptedError, TrainingDivergedError
from cpt_deploy.precision import AdaptiveSchedule, BitOpsMeter
from cpt_deploy.recipe import Recipe, interval_steps
from cpt_deploy.training.distributed.process_group import (
    ProcessGroup,
    choose_device,
    is_lost_connection,
    joined,
    launched,
)
from cpt_deploy.training.distributed.synchronization import Synchronization
from cpt_deploy.training.loop.allocator_settings import freed_memory_kept
from cpt_deploy.training.loop.cuda_graph_step import check_cuda_graph
from cpt_deploy.training.loop.finish import draw_curves, finish
from cpt_deploy.training.loop.interruption import Interruption
from cpt_deploy.training.loop.loop import TrainingLoop
from cpt_deploy.training.loop.loss_following import LossFollowing
from cpt_deploy.training.loop.plan_doubts import doubts_of
from cpt_deploy.training.loop.progress import RunProgress
from cpt_deploy.training.loop.run import Run
from cpt_deploy.training.loop.setup import RunObjects, build_objects
from cpt_deploy.training.randomness import seeded
from cpt_deploy.training.reporting.profiling import StepProfiler
from cpt_deploy.training.reporting.step_costs import StepCosts
from cpt_deploy.training.reports import RunReport, SilentReporter, TrainPlan, TrainReporter
from cpt_deploy.training.run_directory.checkpoints import Checkpoint, read_checkpoint
from cpt_deploy.training.run_directory.metrics_log import MetricsLog, NoLog, columns_of
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.run_directory.run_lock import run_lock
from cpt_deploy.training.run_directory.run_state import restore
from cpt_deploy.training.task import TrainingTask, load_task


def train(
    recipe: Recipe,
    run_dir: Path,
    *,
    resume: bool = False,
    reporter: TrainReporter | None = None,
    profile_steps: int = 0,
) -> RunReport:
    """Train a model with cyclic precision and write all results to a run directory.

    The same recipe gives the same result, and a resumed run the same as an uninterrupted one. Started by torchrun, all
    processes train one model together; only the main process writes files and calls its reporter.

    Args:
        recipe: All settings; `train.batch_size` is that of all processes together.
        run_dir: The directory of the run; new or empty, unless the run is resumed.
        resume: Continue from the last checkpoint (from the start if there is none); a finished run is not changed.
        reporter: Receives the events of the run; by default none does.
        profile_steps: Number of steps to profile at the beginning; the trace is written to the directory.

    Returns:
        The report, also written to `report.json`.

    Raises:
        UsageError: If a setting does not fit, or another process trains in the directory.
        DataError: If the data set, a checkpoint or a file cannot be read or written.
        TrainingDivergedError: If the loss becomes NaN or infinite.
        RunInterruptedError: After SIGINT or SIGTERM; the state is saved.
        ProcessLostError: If another process of a distributed run failed.
    """
    with (
        seeded(recipe.seed, deterministic=recipe.train.deterministic),
        Interruption() as interruption,
        freed_memory_kept(),
        joined(recipe.train.device) as (process_group, device),
        ExitStack() as lock,
    ):
        if not process_group.is_main or reporter is None:
            reporter = SilentReporter()
        directory = RunDirectory(process_group.from_main(lambda: run_dir))
        with process_group.agreeing():
            task = load_task(recipe, device, process_group.per_machine)
            task.check_processes(process_group.count)
            check_cuda_graph(task, device, process_group.count)
        finished = process_group.from_main(lambda: _reentered(directory, task, lock)) if resume else None
        if finished is not None:
            return finished
        with process_group.agreeing():
            objects = build_objects(task.build_model(), task.recipe, task.total_steps, device)
        if not resume:
            process_group.from_main(lambda: _begin(directory, task, lock))
        following = LossFollowing(
            objects.schedules, interval_steps(task.recipe.precision.progressive.every, task.steps_per_epoch)
        )
        progress, costs = _restored(objects, task, following, directory, process_group, resume=resume)
        reporter.start(_plan(recipe, task, objects, directory.path, progress.step, process_group))
        log = _open_log(directory, task, progress, process_group)
        synchronization = Synchronization(objects.model, process_group, device)
        run = Run(
            task,
            objects,
            directory,
            progress,
            log,
            reporter,
            interruption,
            process_group,
            synchronization,
            costs,
            following,
        )
        try:
            report = _carried_out(run, profile_steps)
        finally:
            log.close()
    reporter.finished(report)
    return report


def _carried_out(run: Run, profile_steps: int) -> RunReport:
    profiling = None
    if profile_steps and run.process_group.is_main:
        on_gpu = run.objects.device.type == "cuda"
        profiling = StepProfiler(run.objects.model, profile_steps, run.directory.trace, on_gpu=on_gpu)
    try:
        with profiling or nullcontext():
            TrainingLoop(run, profiling).run()
        if profiling is not None and profiling.report is not None:
            run.reporter.profiled(profiling.report)
        return finish(run)
    except (RunInterruptedError, TrainingDivergedError):
        draw_curves(run)
        run.process_group.wait()  # torchrun ends all processes when one ends, so the main one must be ready
        raise
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ProcessLostError(
            f"Expected all {run.process_group.count} processes to continue, but the connection to one was lost after "
            f"step {run.progress.step} of {run.task.total_steps}; {run.directory.kept}",
            hint=f"continue with any number of processes: cpt train --resume {readable.argument(run.directory.path)}",
        ) from error


def _begin(directory: RunDirectory, task: TrainingTask, lock: ExitStack) -> None:
    directory.create()
    lock.enter_context(run_lock(directory.lock))
    directory.begin(task.recipe)
    task.begin(directory)


def _reentered(directory: RunDirectory, task: TrainingTask, lock: ExitStack) -> RunReport | None:
    """Make sure that a run can be resumed, and take its lock; return its report if it is finished."""
    directory.check_resumable(task.recipe)
    lock.enter_context(run_lock(directory.lock))
    task.check(directory)
    return RunReport.read(directory.report) if directory.report.is_file() else None


def _restored(
    objects: RunObjects,
    task: TrainingTask,
    following: LossFollowing,
    directory: RunDirectory,
    process_group: ProcessGroup,
    *,
    resume: bool,
) -> tuple[RunProgress, StepCosts]:
    """Restore the last checkpoint, which only the main process reads, in all processes; without one, start anew."""

    def read() -> Checkpoint | None:
        return read_checkpoint(directory.last) if resume and directory.last.is_file() else None

    costs, checkpoint = StepCosts(objects.device), process_group.from_main(read)
    if checkpoint is None:
        return RunProgress(), costs
    with process_group.agreeing():
        state, carried = restore(checkpoint, objects.model, objects.optimizer, objects.averaged)
    if state.pop("data", None) != task.data_digest:
        raise CheckpointError(
            f"Expected the training data that the run in {directory.path} began with, but they have changed",
            hint="resume with the same classes, samples and labels, or begin a new run",
        )
    task.restore(carried, objects.model, objects.device, process_group)
    objects.meter.load_state_dict(state.pop("meter"))
    costs.load_state_dict(state.pop("costs"))
    following.load_state_dict(state.pop("following"))
    return RunProgress.from_state_dict(state), costs


def _open_log(
    directory: RunDirectory, task: TrainingTask, progress: RunProgress, process_group: ProcessGroup
) -> MetricsLog | NoLog:
    if not process_group.is_main:
        return NoLog()
    columns = columns_of(task.train_metrics, task.test_metrics)
    return MetricsLog(directory, columns, progress.step, after_evaluation=progress.evaluated_step == progress.step)


def plan_run(recipe: Recipe, run_dir: Path) -> TrainPlan:
    """Return the plan of a run without writing anything.

    Raises:
        CptError: If data, model or settings do not fit, as `train` would raise it.
    """
    process_group = launched()
    device = choose_device(recipe.train.device, process_group)
    task = load_task(recipe, device, process_group.per_machine)
    check_cuda_graph(task, device, process_group.count)
    objects = build_objects(task.build_model(), task.recipe, task.total_steps, device)
    return _plan(recipe, task, objects, run_dir, 0, process_group)


def _plan(
    given: Recipe,
    task: TrainingTask,
    objects: RunObjects,
    run_dir: Path,
    first_step: int,
    process_group: ProcessGroup,
) -> TrainPlan:
    layers = objects.model.layers()
    return TrainPlan(
        run_dir=run_dir,
        recipe=task.recipe,
        device=str(objects.device),
        parameters=objects.parameters,
        macs=sum(layer.macs for layer in layers),
        layers=objects.layers_by_group,
        train_images=task.samples[0],
        test_images=task.samples[1],
        classes=task.classes,
        steps_per_epoch=task.steps_per_epoch,
        total_steps=task.total_steps,
        first_step=first_step,
        relative_cost=_relative_cost(objects, task.total_steps),
        processes=process_group.count,
        workers=task.workers,
        unit=task.unit,
        metric=task.metric,
        held_out=task.held_out,
        pretrained=task.pretrained,
        left_out=task.left_out,
        divided=task.divided,
        doubts=doubts_of(task, objects),
        conversion=objects.model.conversion,
        recommended=given.precision.min_bits is None and task.recipe.precision.min_bits is not None,
    )


def _relative_cost(objects: RunObjects, total_steps: int) -> float | None:
    """Return the BitOPs relative to static precision; `None` if a schedule depends on the loss."""
    if any(isinstance(schedule, AdaptiveSchedule) for schedule in objects.schedules):
        return None
    counted = objects.meter
    meter = BitOpsMeter(counted.layers, counted.max_bits, counted.groups, counted.gradient_max_bits)
    return 1.0 - meter.add_run(objects.forward, objects.backward, total_steps, 1, objects.groups).saving
