"""A precision schedule for a user's own training loop, used like the learning-rate schedulers of torch."""

from typing import Any

from cpt_deploy.errors import UsageError
from cpt_deploy.precision import AdaptiveSchedule, PrecisionSchedule, build_schedule
from cpt_deploy.quantization.model import QuantizedModel
from cpt_deploy.quantization.state.config import FLOAT_BITS


class CyclicPrecision:
    """Sets the bits of a model step by step: cyclic precision training (Fu et al., 2021, equation 3).

    It is used like the schedulers of `torch.optim.lr_scheduler`: construct it before the first step, whose bits it
    sets, and call `step` after each one. After the last step the model is at max_bits, as in evaluation and serving.

    >>> import torch
    >>> from cpt_deploy import CyclicPrecision, QuantizationConfig, prepare
    >>> config = QuantizationConfig(min_bits=3, max_bits=8, ends="scheduled")
    >>> model = prepare(torch.nn.Linear(4, 2), torch.zeros(2, 4), config)
    >>> schedule = CyclicPrecision(model, total_steps=8, cycles=2)
    >>> bits = []
    >>> for _ in range(8):
    ...     bits.append(schedule.get_last_bits())  # a training step runs here
    ...     schedule.step()
    >>> bits
    [3, 4, 6, 7, 3, 4, 6, 7]
    >>> schedule.get_last_bits()
    8

    Args:
        model: The prepared model; min_bits and max_bits are those of its configuration.
        total_steps: Steps of the whole training.
        cycles: How often the bits rise from min_bits to max_bits.
        schedule: A name that `cpt schedules` lists, such as "cosine" (the paper's) or "rex-triangular-vertical", or an
            object with a method `bits_at(step, total_steps)`.
        gradient_bits: Bits of the gradients, the same in all steps but those in float32 (24 bits and more).
        last_step: Number of the last finished step, from which training continues; -1 for a new one.

    Raises:
        UsageError: If there are fewer steps than cycles, the name is unknown, bits are out of range, or the schedule
            follows the training loss.
    """

    def __init__(
        self,
        model: QuantizedModel,
        total_steps: int,
        cycles: int = 32,
        *,
        schedule: str | PrecisionSchedule = "cosine",
        gradient_bits: int = 8,
        last_step: int = -1,
    ) -> None:
        if isinstance(schedule, str):
            config = model.config
            schedule = build_schedule(schedule, min_bits=config.min_bits, max_bits=config.max_bits, cycles=cycles)
        if isinstance(schedule, AdaptiveSchedule):
            raise UsageError(
                "Expected a schedule of steps alone, but got one that follows the training loss",
                hint="cpt train tells it the loss; the others are listed by cpt schedules",
            )
        self.model = model
        self.schedule = schedule
        self.total_steps = total_steps
        self.gradient_bits = gradient_bits
        self._go_to(last_step + 1)

    def step(self) -> None:
        """Set the bits of the next training step, and the seed of its gradients' rounding.

        Raises:
            UsageError: If all steps are done.
        """
        self._go_to(self.last_step + 1)

    def get_last_bits(self) -> int:
        """Return the bits of weights and activations that were set last."""
        return self._bits

    def state_dict(self) -> dict[str, Any]:
        """Return the progress, for a checkpoint."""
        return {"last_step": self.last_step, "total_steps": self.total_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Raises:
            UsageError: If the training has another length.
        """
        if state["total_steps"] != self.total_steps:
            raise UsageError(
                f"Expected the state of a training of {self.total_steps} steps, but got one of {state['total_steps']}"
            )
        self._go_to(state["last_step"])

    def _go_to(self, step: int) -> None:
        if step > self.total_steps:
            raise UsageError(
                f"Expected at most {self.total_steps} steps, but got one more",
                hint="give total_steps the number of all steps: epochs times batches of an epoch",
            )
        self.last_step = step
        done = step == self.total_steps
        self._bits = self.model.config.max_bits if done else self.schedule.bits_at(step, self.total_steps)
        self.model.set_bits(self._bits, self._bits if self._bits >= FLOAT_BITS else self.gradient_bits)
        self.model.set_step(step)
