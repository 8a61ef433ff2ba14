"""What a plan says about a run that cannot teach the network what it is meant to, before it is paid for."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cpt_deploy import readable
from cpt_deploy.precision import (
    LOSSES,
    RECOMMENDED_LOSS,
    SHORT_SPAN,
    CyclicSchedule,
    DelayedSchedule,
    PrecisionSchedule,
    is_short,
    quantized_steps,
)

if TYPE_CHECKING:
    from cpt_deploy.training.loop.setup import RunObjects
    from cpt_deploy.training.task import TrainingTask

STEPS_PER_CYCLE = 3
"""A cycle of fewer steps misses most bits between its bounds; the paper's cycles have 2,000."""

_LOOKED_AT = 1_000

DROPPED = 0.25
"""Share of the training samples that an epoch may leave out without a word."""


def doubts_of(task: "TrainingTask", objects: "RunObjects") -> list[str]:
    """Return reasons to doubt that a run can teach anything, each with the setting that changes it."""
    return [*_of_precision(task, objects), *_of_length(task), *task.doubts()]


def dropped_samples(samples: int, batch_size: int) -> str | None:
    """Return a doubt if whole batches leave out much of the training set, or None.

    Args:
        samples: Number of training samples.
        batch_size: Samples of a batch.
    """
    if batch_size > samples:
        return (
            f"train.batch_size={batch_size} is more than the {readable.counted(samples, 'training sample')}, so that "
            "each epoch is one step; a smaller one takes more steps"
        )
    left_out = samples % batch_size
    if left_out < DROPPED * samples:
        return None
    better = min(range(max(batch_size // 2, 1), batch_size + 1), key=lambda size: (samples % size, -size))
    return (
        f"each epoch leaves out {readable.share(left_out / samples, 0)} of the training set, the rest that fills no "
        f"batch of {batch_size}: train.batch_size={better} leaves out {readable.share(samples % better / samples, 0)}"
    )


def _of_precision(task: "TrainingTask", objects: "RunObjects") -> Iterator[str]:
    precision = task.recipe.precision
    total = quantized_steps(precision.delay, task.total_steps)
    unit = "quantized step" if precision.delay else "step"
    settings: list[tuple[str, PrecisionSchedule]] = [
        ("precision.cycles", objects.forward),
        ("precision.grad_cycles", objects.backward),
        *((f"precision.groups.{place}.cycles", schedule) for place, schedule in enumerate(objects.groups.values())),
    ]
    for key, whole in settings:
        schedule = whole.schedule if isinstance(whole, DelayedSchedule) else whole
        if isinstance(schedule, CyclicSchedule) and total < STEPS_PER_CYCLE * schedule.cycles:
            fewer = "" if schedule.cycles == 1 else f", or {key}={max(total // 10, 1)}"
            yield (
                f"{readable.counted(schedule.cycles, 'cycle')} in {readable.counted(total, unit)} leave "
                f"{readable.figure(total / schedule.cycles)} to a cycle, fewer than {STEPS_PER_CYCLE}: "
                f"train longer{fewer}"
            )
        elif isinstance(schedule, CyclicSchedule) and (most := _most_bits(schedule, total)) < schedule.max_bits:
            yield (
                f"{key}={schedule.cycles} over {readable.counted(total, unit)} reaches {most} bits, not "
                f"{schedule.max_bits}: longer cycles do"
            )
    epochs, lost, (min_bits, max_bits) = total / task.steps_per_epoch, LOSSES.get(precision.schedule), precision.bounds
    if lost and max_bits - min_bits > SHORT_SPAN and is_short(total, epochs):
        yield (
            f"{readable.counted(total, unit)}, {readable.counted(round(epochs), 'epoch')}, are few for the schedule "
            f"{precision.schedule} from {min_bits} bits: between 3 and 8 it cost up to {lost} points of accuracy in "
            f"short runs of the learning study, and a cosine from 5 up to {RECOMMENDED_LOSS}; precision.min_bits=null "
            "leaves them to the length of the run"
        )
    if precision.schedule != "static" and not any(
        layer.group not in ("fixed", "float") for layer in objects.meter.layers
    ):
        yield (
            f"no layer has scheduled precision, so that all are trained at {precision.max_bits} bits: "
            "precision.ends=scheduled includes the first and the last one"
        )


def _most_bits(schedule: PrecisionSchedule, total: int) -> int:
    """Return the most bits of a run; of a long one, whose cycles reach the bound, of its last steps."""
    return max(schedule.bits_at(step, total) for step in range(max(total - _LOOKED_AT, 0), total))


def _of_length(task: "TrainingTask") -> Iterator[str]:
    recipe, total = task.recipe, task.total_steps
    if recipe.train.swa.enabled and recipe.train.swa.start < recipe.precision.delay:
        yield (
            f"the average of weights begins at {recipe.train.swa.start:g} of the run, before quantization does: "
            f"train.swa.start={recipe.precision.delay:g}"
        )
    if recipe.lr.name == "plateau" and recipe.train.eval_every is None:
        yield "lr.name=plateau follows evaluations, of which there are none before the end: train.eval_every='1 epoch'"
    if recipe.lr.warmup_steps >= total:
        yield f"the warm-up of {recipe.lr.warmup_steps:,} steps is as long as the run: lr.warmup_steps={total // 20}"
