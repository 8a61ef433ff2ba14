"""Progress of a run: the counts and times that a checkpoint keeps besides tensors."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from cpt_deploy.training.reports import Evaluation


@dataclass
class Window:
    """Loss and accuracy since the last row of the log.

    Losses wait as tensors until they are read, since reading one waits for the device.
    """

    loss_sum: float = 0.0
    correct: int = 0
    samples: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    waiting: list[tuple[int, Tensor, Tensor, int]] = field(default_factory=list)

    def add(self, step: int, loss: Tensor, correct: Tensor, samples: int) -> None:
        """Add the result of one step.

        Args:
            step: Its number, from 0.
            loss: Its mean loss, 0-dim.
            correct: Number of its samples that were classified correctly, 0-dim.
            samples: Number of its samples.
        """
        self.waiting.append((step, loss, correct, samples))

    def read(self) -> tuple[int, float] | None:
        """Read the waiting losses; return step and loss of the first that is NaN or infinite, if any."""
        if not self.waiting:
            return None
        losses = torch.stack([entry[1] for entry in self.waiting]).tolist()
        corrects = torch.stack([entry[2] for entry in self.waiting]).tolist()
        bad = None
        for (step, _, _, samples), loss, correct in zip(self.waiting, losses, corrects, strict=True):
            if bad is None and not math.isfinite(loss):
                bad = (step, loss)
            self.loss_sum += loss * samples
            self.correct += correct
            self.samples += samples
        self.waiting.clear()
        return bad

    def means(self) -> dict[str, float]:
        """Return loss, accuracy, images per second and the share of time spent waiting for data, of the read steps."""
        return {
            "loss": self.loss_sum / self.samples,
            "accuracy": self.correct / self.samples,
            "images_per_s": round(self.samples / max(self.seconds, 1e-9), 1),
            "data_share": round(self.data_seconds / max(self.seconds, 1e-9), 4),
        }

    def state_dict(self) -> dict[str, float]:
        """Return the sums over the read losses, as JSON types."""
        return {name: value for name, value in vars(self).items() if name != "waiting"}


@dataclass
class RunProgress:
    """Counts and times of a run.

    Attributes:
        step: Number of finished steps.
        samples: Number of training images seen, with repetition.
        evaluated_step: Step of the last evaluation.
        best: The best evaluation so far.
        plateaus: Number of evaluations that were not the best so far.
        train_seconds: Time of training steps, including loading.
        data_seconds: Time of waiting for batches, a part of `train_seconds`.
        eval_seconds: Time of evaluations.
        window: Sums since the last row of the log.
        latest: Means of the last row of the log.
    """

    step: int = 0
    samples: int = 0
    evaluated_step: int = 0
    best: Evaluation | None = None
    plateaus: int = 0
    train_seconds: float = 0.0
    data_seconds: float = 0.0
    eval_seconds: float = 0.0
    window: Window = field(default_factory=Window)
    latest: dict[str, float] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        best = None if self.best is None else asdict(self.best)
        return {**vars(self), "best": best, "window": self.window.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "RunProgress":
        """Return the progress that `state_dict` described."""
        values = dict(state)
        best = values.pop("best")
        return cls(**{**values, "best": Evaluation(**best) if best else None, "window": Window(**values["window"])})


class Stopwatch:
    """Measures the time between calls."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
