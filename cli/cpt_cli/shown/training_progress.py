"""The output of `cpt train` during a run: a summary, then a bar on a terminal and else one line per epoch."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cpt_cli.output import Bar, out
from cpt_deploy import readable
from cpt_deploy.metric import ACCURACY

if TYPE_CHECKING:
    from cpt_deploy.precision import PrecisionSchedule
    from cpt_deploy.training import Evaluation, Pretrained, ProfileReport, RunReport, StepProgress, TrainPlan

SHOWN_CYCLES = 4
SHOWN_COLUMNS = 32
SLOW_LOADING = 0.2
"""Share of the time spent waiting for batches above which a hint is shown."""


class TrainingProgress:
    """The `cpt_deploy.training.TrainReporter` that shows a run through `out`.

    Args:
        doubts: Whether to say what makes the plan doubtful.
    """

    def __init__(self, *, doubts: bool = True) -> None:
        self._doubts = doubts
        self._stack = ExitStack()
        self._bar: Bar | None = None
        self._steps_per_epoch = 1
        self._epochs = 1.0
        self._line = ""
        self._last_result = ""
        self._workers, self._unit = 0, "images"
        self._metric, self._held_out = ACCURACY, "test"
        self._shares: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def start(self, plan: "TrainPlan") -> None:
        """Show the plan and the bar."""
        show_plan(plan, doubts=self._doubts and not plan.first_step)
        self._steps_per_epoch = plan.steps_per_epoch
        self._epochs = plan.total_steps / plan.steps_per_epoch
        self._workers, self._unit = plan.workers, plan.unit
        self._metric, self._held_out = plan.metric, plan.held_out
        if plan.first_step:
            out.note(f"going on from step {plan.first_step}")
        self._bar = self._stack.enter_context(out.bar("training", plan.total_steps, start=plan.first_step))

    def step(self, progress: "StepProgress") -> None:
        """Advance the bar; at the end of an epoch prepare its line, which an evaluation completes."""
        self._flush()
        self._hint_at_slow_loading(progress)
        figures = _figures(progress, self._unit)
        if self._bar is not None:
            tested = [self._last_result] if self._last_result else []
            self._bar.advance(progress.step, progress.total_steps, detail="  ".join([*figures, *tested]))
        if progress.step % self._steps_per_epoch == 0 or progress.step == progress.total_steps:
            epoch = f"epoch {readable.figure(progress.step / self._steps_per_epoch)}/{readable.figure(self._epochs)}"
            self._line = "  ".join([epoch, *figures])

    def evaluated(self, evaluation: "Evaluation") -> None:
        """Complete the epoch's line with the metric on held-out samples."""
        self._last_result = f"{self._held_out} {self._metric.text(evaluation.metrics[self._metric.name])}"
        if evaluation.calibrated:
            self._flush()
            return
        best = ", best" if evaluation.best else ""
        self._line = f"{self._line or f'step {evaluation.step}'}  {self._last_result}{best}"
        self._flush()

    def profiled(self, profile: "ProfileReport") -> None:
        """Show the times of the profiled steps by part."""
        show_profile(profile)

    def finished(self, report: "RunReport") -> None:
        """Remove the bar; the command shows the result."""
        self._flush()
        self._stack.close()

    def _hint_at_slow_loading(self, progress: "StepProgress") -> None:
        """Print a hint once if the first whole log interval after the start was spent waiting for batches."""
        if progress.data_share is None or len(self._shares) == 2:
            return
        if progress.data_share not in self._shares:
            self._shares.append(progress.data_share)
            if len(self._shares) == 2 and progress.data_share > SLOW_LOADING:
                out.warning(
                    f"{readable.share(progress.data_share)} of the time is spent waiting for batches; "
                    f"data.workers={self._workers + 1} or more, up to the number of idle cores, may help"
                )

    def _flush(self) -> None:
        if self._line and not out.shows_progress:
            out.note(self._line)
        self._line = ""


def _figures(progress: "StepProgress", unit: str) -> list[str]:
    figures = [f"bits {progress.bits}", f"lr {progress.lr:.3g}"]
    if progress.loss is not None:
        figures.append(f"loss {progress.loss:.3f}")
    if progress.accuracy is not None:
        figures.append(f"train {readable.share(progress.accuracy)}")
    if progress.images_per_s is not None:
        figures.append(f"{progress.images_per_s:.0f} {unit}/s")
    if progress.data_share is not None:
        figures.append(f"waiting for data {readable.share(progress.data_share, 0)}")
    return figures


def show_plan(plan: "TrainPlan", *, doubts: bool = True) -> None:
    """Print the plan of a run, and what makes it doubtful."""
    recipe = plan.recipe
    epochs = readable.figure(plan.total_steps / plan.steps_per_epoch)
    length = f"{epochs} {'epoch' if epochs == '1' else 'epochs'}"
    parameters, macs = readable.count(plan.parameters), readable.count(plan.macs)
    kinds = f", {readable.counted(plan.classes, 'class', 'classes')}" if plan.classes else ""
    kinds += "; it has no splits: a fifth of each class is held out for testing" if plan.divided else ""
    samples = f"{plan.train_images:,} {plan.unit} to train and {plan.test_images:,} to test"
    out.fields(
        f"Training {recipe.name}",
        {
            "model": f"{recipe.model.name}, {parameters} parameters, {macs} MACs per {plan.unit.removesuffix('s')}",
            **({} if plan.pretrained is None else {"weights": describe_pretrained(plan.pretrained)}),
            "quantized layers": _describe_layers(plan),
            **({} if plan.conversion is None else {"computes on": plan.conversion.in_words}),
            "data": f"{recipe.data.name}, {samples}{kinds}",
            **({} if not plan.left_out else {"files left out": describe_left_out(plan.left_out)}),
            "steps": f"{plan.total_steps:,} ({length} of batches of {recipe.train.batch_size})",
            "precision": _describe_precision(plan),
            "cost": _describe_cost(plan),
            "device": _describe_device(plan),
            "seed": recipe.seed,
            "run": readable.path(plan.run_dir),
        },
    )
    if doubts:
        for doubt in plan.doubts:
            out.warning(doubt)
    if plan.pretrained is not None and plan.pretrained.published_input is not None:
        mean, std = (f"[{','.join(f'{value:g}' for value in values)}]" for values in plan.pretrained.published_input)
        out.warning(
            f"the published weights of {recipe.model.name} read images of another normalisation; if they are "
            f"what {readable.path(Path(plan.pretrained.file))} holds: data.input.mean={mean} data.input.std={std}"
        )


def _describe_device(plan: "TrainPlan") -> str:
    from cpt_deploy.quantization.kernels import active

    device = plan.device if plan.processes == 1 else f"{plan.processes} processes, first on {plan.device}"
    reason = active(plan.device.partition(":")[0]).reason
    return f"{device}, without compiled kernels, which are faster: {reason}" if reason else device


def describe_left_out(counts: Mapping[str, int]) -> str:
    """Return one line with the number of unused files by type."""
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def describe_pretrained(pretrained: "Pretrained") -> str:
    """Return one line with the pretrained weights of a run, and the layers left at their initialisation."""
    taken = f"{pretrained.tensors} tensors of {readable.path(Path(pretrained.file))}, SHA-256 {pretrained.sha256[:12]}…"
    if pretrained.fresh:
        classes = readable.counted(pretrained.classes or 0, "class", "classes")
        taken += f"; {' and '.join(pretrained.fresh)} newly initialised: the file has {classes}"
    else:
        taken += ", the last layer's too"
    if pretrained.left_out:
        taken += f"; {' and '.join(pretrained.left_out)} left out: auxiliary heads, which only help training"
    return taken


def show_profile(profile: "ProfileReport") -> None:
    """Print the times of the profiled steps by part."""
    total = sum(profile.seconds.values())
    rows = [
        (
            group,
            f"{1e3 * seconds:.2f}",
            readable.share(seconds / total, 1),
            ", ".join(f"{name} {1e3 * own:.2f}" for name, own in profile.operators.get(group, ())),
        )
        for group, seconds in profile.seconds.items()
    ]
    title = f"Where a step's {1e3 * profile.step_seconds:.1f} ms go, mean of {profile.steps} steps under the profiler"
    out.table(("part of a step", "ms", "share", "most of it"), rows, title=title)
    out.line(f"trace for https://ui.perfetto.dev or chrome://tracing: {readable.path(profile.trace)}")


def show_step_costs(report: "RunReport") -> None:
    """Print the cost of a step at each bit-width: BitOPs, and measured time and memory."""
    greatest = max((cost["gbitops"] or 0.0 for cost in report.steps_by_bits.values()), default=0.0)
    rows = []
    for bits, cost in report.steps_by_bits.items():
        operations, memory = cost["gbitops"] or 0.0, cost["memory_bytes"]
        rows.append(
            (
                bits,
                f"{operations:,.1f}",
                readable.share(operations / greatest, 0),
                cost["steps"],
                f"{1e3 * (cost['median_seconds'] or 0.0):,.1f}",
                "" if memory is None else readable.size(int(memory)),
            )
        )
    columns = ("bits", "GBitOPs", "share of max", "steps", "median ms", "peak memory")
    out.table(columns, rows, title="A step at each bit-width, counted and measured")


def _describe_layers(plan: "TrainPlan") -> str:
    precision = plan.recipe.precision
    scheduled, held = plan.layers.get("scheduled", 0), plan.layers.get("fixed", 0)
    parts = [f"{scheduled} scheduled"]
    for number, group in enumerate(precision.groups, start=1):
        min_bits, max_bits = precision.bounds_of(group)
        schedule = group.schedule or precision.schedule
        parts.append(
            f"{plan.layers.get(f'group{number}', 0)} of {group.match} ({schedule}, {min_bits}-{max_bits} bits)"
        )
    return ", ".join([*parts, f"{held} fixed at {precision.max_bits} bits"])


def _describe_cost(plan: "TrainPlan") -> str:
    if plan.relative_cost is None:
        return "follows from the training loss, which decides when bits rise"
    static = f"the BitOPs of static {plan.recipe.precision.max_bits} bits"
    if plan.relative_cost > 1:  # steps in float32
        return f"{readable.figure(plan.relative_cost)} times {static}"
    return f"{readable.share(plan.relative_cost)} of {static}"


def _describe_precision(plan: "TrainPlan") -> str:
    precision = plan.recipe.precision
    schedule = precision.forward_schedule()
    line, shown = _schedule_line(schedule, plan.total_steps)
    bits = "-".join(map(str, precision.bounds)) if precision.schedule != "static" else f"{precision.max_bits}"
    chosen = ", min_bits by the length of the run" if plan.recommended and precision.schedule != "static" else ""
    begins = f"{readable.share(precision.delay, 0)} of the run in float32, then " if precision.delay else ""
    return (
        f"{line}{shown}  {begins}{precision.schedule} {bits} bits forward, {precision.grad_max_bits} backward{chosen}"
    )


def _schedule_line(schedule: "PrecisionSchedule", total_steps: int) -> tuple[str, str]:
    """Return a schedule as blocks, and a note if only the first of many cycles are shown."""
    cycles = int(getattr(schedule, "cycles", 1))
    steps = total_steps if cycles <= SHOWN_CYCLES else total_steps * SHOWN_CYCLES // cycles
    bits: Sequence[int] = [schedule.bits_at(step, total_steps) for step in range(max(steps, 1))]
    return readable.sparkline(bits, SHOWN_COLUMNS), f"… ({cycles} cycles)" if cycles > SHOWN_CYCLES else ""
