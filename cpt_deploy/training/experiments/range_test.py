"""The precision range test, which finds min_bits: a few iterations at 2 bits, 3 bits, …, until training makes progress.

Fu et al., 2021, section 3.3: training begins at the lowest precision, which is raised step by step; the first one at
which the training accuracy, averaged over several consecutive iterations, rises by more than a threshold is the lower
bound of the cycle.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import nn

from cpt_deploy.errors import TrainingDivergedError, UsageError
from cpt_deploy.recipe import Recipe
from cpt_deploy.training.distributed.process_group import ALONE, choose_device, launched
from cpt_deploy.training.loop.allocator_settings import freed_memory_kept
from cpt_deploy.training.loop.optimizers import set_learning_rate
from cpt_deploy.training.loop.setup import RunObjects, build_objects
from cpt_deploy.training.randomness import seeded
from cpt_deploy.training.task import TrainingTask, load_task

MIN_BITS = 2
DEFAULT_STEPS = 100
DEFAULT_THRESHOLD = 0.01
#: The share of a precision's steps over which accuracy is averaged, at the beginning and at the end.
WINDOW = 0.25
#: A rise counts only if it is this many standard errors above the threshold: a few batches are a small sample.
STANDARD_ERRORS = 2.0


@dataclass(frozen=True)
class BitsProgress:
    """Training progress at one precision.

    Args:
        bits: Bits of weights and activations.
        accuracy: Training accuracy of each step.
        loss: Loss of each step.
        batch_size: Samples of a step: images, or tokens.
        diverged: Whether the loss became NaN or infinite in the step after the last one.
    """

    bits: int
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    batch_size: int
    diverged: bool = False

    @property
    def window(self) -> int:
        """Number of steps of an average."""
        return max(1, round(WINDOW * len(self.accuracy)))

    @property
    def before(self) -> float:
        """Mean accuracy of the first steps."""
        return fmean(self.accuracy[: self.window])

    @property
    def after(self) -> float:
        """Mean accuracy of the last steps."""
        return fmean(self.accuracy[-self.window :])

    @property
    def rise(self) -> float:
        """How far the mean accuracy rose, as a fraction of 1."""
        return self.after - self.before

    @property
    def standard_error(self) -> float:
        """Standard error of `rise`, from the binomial variance of both averages."""
        images = self.window * self.batch_size
        variance = self.before * (1 - self.before) + self.after * (1 - self.after)
        return math.sqrt(variance / images)

    def exceeds(self, threshold: float) -> bool:
        """Return whether accuracy rose significantly above a threshold and the loss stayed finite."""
        return not self.diverged and self.rise > threshold + STANDARD_ERRORS * self.standard_error

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types."""
        return {
            "bits": self.bits,
            "before": self.before,
            "after": self.after,
            "rise": self.rise,
            "standard_error": self.standard_error,
            "loss_after": fmean(self.loss[-self.window :]),
            "diverged": self.diverged,
            "accuracy": list(self.accuracy),
            "loss": list(self.loss),
        }


@dataclass(frozen=True)
class RangeTest:
    """The outcome of a precision range test.

    Args:
        min_bits: The min_bits of the schedule; `None` if accuracy rose at no precision.
        threshold: The rise of accuracy that counts as progress.
        progress: Progress at each tested precision, ascending.
    """

    min_bits: int | None
    threshold: float
    progress: tuple[BitsProgress, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON types."""
        return {
            "min_bits": self.min_bits,
            "threshold": self.threshold,
            "precisions": [progress.to_dict() for progress in self.progress],
        }


def range_test(
    recipe: Recipe,
    *,
    steps: int = DEFAULT_STEPS,
    threshold: float = DEFAULT_THRESHOLD,
    to_max_bits: bool = False,
    on_step: Callable[[int, int, float], None] | None = None,
) -> RangeTest:
    """Find the min_bits of a recipe's schedule.

    A single model is trained throughout, so each precision continues from the weights of the one before. If the loss
    becomes NaN or infinite, which low precision alone can cause, that precision fails and the next one starts from the
    same state. The learning rate is the recipe's peak, gradients have their max_bits, and nothing is written.

    Args:
        recipe: The recipe; its own min_bits, schedules and delay are ignored.
        steps: Steps at each precision.
        threshold: Rise of the training accuracy that counts as progress, as a fraction of 1.
        to_max_bits: Continue up to max_bits after min_bits is found, to show the whole curve.
        on_step: Called with the steps done, the max number of steps, and the accuracy of the step.

    Raises:
        UsageError: If torchrun started several processes, there are fewer than 4 steps, or max_bits leaves nothing to
            test.
        TrainingDivergedError: If the loss becomes NaN or infinite at max_bits, or in the first step.
        CptError: If data, model or settings do not fit.
    """
    max_bits, processes = recipe.precision.max_bits, launched().count
    if processes > 1:
        raise UsageError(
            f"Expected a range test in one process, but got {processes}",
            hint="run cpt range-test without torchrun, and give the run what it finds: --bits MIN-MAX",
        )
    if steps < 4:
        raise UsageError(f"Expected at least 4 steps at each precision, but got {steps}")
    without = {"schedule": "static", "grad_schedule": "static", "delay": 0.0}
    groups = tuple(group.model_copy(update={"schedule": "static"}) for group in recipe.precision.groups)
    widened = recipe.precision.model_copy(update={**without, "min_bits": MIN_BITS, "groups": groups})
    with seeded(recipe.seed, deterministic=recipe.train.deterministic), freed_memory_kept():
        device = choose_device(recipe.train.device, ALONE)
        task = load_task(recipe.model_copy(update={"precision": widened}), device)
        objects = build_objects(task.build_model(), task.recipe, task.total_steps, device)
        precisions = range(MIN_BITS, max_bits + 1)
        batches = task.stream(range(len(precisions) * steps), ALONE, pin_memory=False)
        found: int | None = None
        results: list[BitsProgress] = []
        for bits in precisions:
            done = len(results) * steps

            def tell(step: int, accuracy: float, done: int = done) -> None:
                if on_step is not None:
                    on_step(done + step, len(precisions) * steps, accuracy)

            model_before, optimizer_before = copy.deepcopy((objects.model.state_dict(), objects.optimizer.state_dict()))
            carried_before, own = dict(task.state(objects.model, ALONE)), islice(batches, steps)
            results.append(_train_at(objects, task, bits, own, tell))
            if results[-1].diverged:
                _check_divergence(results[-1], max_bits)
                objects.model.load_state_dict(model_before)
                objects.optimizer.load_state_dict(optimizer_before)
                task.restore(carried_before, objects.model, device, ALONE)
                deque(own, maxlen=0)  # each precision has its own batches, even after a divergence
            if found is None and results[-1].exceeds(threshold):
                found = bits
            if found is not None and not to_max_bits:
                break
    return RangeTest(found, threshold, tuple(results))


def _check_divergence(progress: BitsProgress, max_bits: int) -> None:
    """Make sure that low precision is the cause of a divergence: not at max_bits and not in the first step."""
    if progress.bits == max_bits or not progress.loss:
        raise TrainingDivergedError(
            f"Expected a finite loss, but got NaN or infinity at {progress.bits} bits, step {len(progress.loss) + 1} "
            "of the range test",
            hint="lower optimizer.lr or set train.grad_clip",
        )


def _train_at(
    objects: RunObjects,
    task: TrainingTask,
    bits: int,
    batches: Iterator[Any],
    tell: Callable[[int, float], None],
) -> BitsProgress:
    recipe, samples = task.recipe, 0
    set_learning_rate(objects.optimizer, recipe.optimizer.lr)
    objects.model.train().set_bits(bits, recipe.precision.grad_max_bits)
    accuracies: list[float] = []
    losses: list[float] = []
    for step, batch in enumerate(batches, start=1):
        objects.model.set_step(bits * 1_000_000 + step)
        loss, correct, samples, _ = task.step(objects.model, batch, objects.device, autocast=False)
        if not bool(torch.isfinite(loss)):
            return BitsProgress(bits, tuple(accuracies), tuple(losses), samples, diverged=True)
        objects.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.train.grad_clip is not None:
            nn.utils.clip_grad_norm_(objects.model.parameters(), recipe.train.grad_clip)
        objects.optimizer.step()
        accuracies.append(float(correct) / samples)
        losses.append(float(loss.detach()))
        tell(step, accuracies[-1])
    return BitsProgress(bits, tuple(accuracies), tuple(losses), samples)
