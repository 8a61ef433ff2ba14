"""Data, loss and evaluation of a run."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cpt_deploy.data import WHOLE, Share
from cpt_deploy.metric import R_SQUARED
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe
from cpt_deploy.training import Evaluation, StepOutcome, TrainingTask, prepare_network
from diabetes_task.network import TwoBranchMlp
from diabetes_task.table import BLOOD, PERSON, PROGRESSION, load_table

Batch = tuple[Tensor, Tensor, Tensor]
"""Both inputs and the targets of some rows."""


def build_model(recipe: Recipe, *, trained: bool = False) -> QuantizedModel:
    """Build the quantized network of a recipe; `trained` if it will get the weights of a finished run."""
    example = {PERSON: torch.zeros(2, 4), BLOOD: torch.zeros(2, 6)}
    return prepare_network(TwoBranchMlp(**recipe.model.args), recipe, example, trained=trained)


class TableTraining(TrainingTask):
    """Training on the rows of a table that fits in memory."""

    name, unit, metric, test_metrics = "tabular-regression", "patients", R_SQUARED, ("r_squared",)

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.train, self.test = (self._tensors(load_table(split, recipe.data.limit)) for split in ("train", "test"))

    @staticmethod
    def _tensors(table: Any) -> Batch:
        return tuple(torch.from_numpy(values) for values in (*table.inputs.values(), table.targets))  # type: ignore[return-value]

    @property
    def samples(self) -> tuple[int, int]:
        """Number of training and of test patients."""
        return len(self.train[-1]), len(self.test[-1])

    @property
    def step_samples(self) -> int:
        """Number of patients of a batch."""
        return min(self.recipe.train.batch_size, self.samples[0])

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches."""
        return self.samples[0] // self.step_samples

    def build_model(self) -> QuantizedModel:
        """Build the network with random weights."""
        return build_model(self.recipe)

    def _batch(self, step: int, share: Share) -> Batch:
        """Return a process's rows of the batch of a step, in the random order of its epoch."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = torch.randperm(self.samples[0], generator=torch.Generator().manual_seed(self.recipe.seed + epoch))
        rows = order[place * self.step_samples :][: self.step_samples][share.of(self.step_samples)]
        return tuple(tensor[rows] for tensor in self.train)  # type: ignore[return-value]

    def stream(self, steps: range, process_group: Any, *, pin_memory: bool) -> Iterator[Batch]:
        """Yield this process's rows of each batch."""
        return (self._batch(step, process_group.share) for step in steps)

    def step(self, model: nn.Module, batch: Batch, device: torch.device, *, autocast: bool) -> StepOutcome:
        """Compute the mean squared error of a batch."""
        person, blood, targets = (tensor.to(device) for tensor in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            outputs = model(person, blood)[PROGRESSION]
        loss = functional.mse_loss(outputs.float(), targets)
        return StepOutcome(loss, torch.zeros(()), len(targets), self.step_samples)

    def evaluate(self, model: Any, device: torch.device, step: int, stop: Any, process_group: Any) -> Evaluation | None:
        """Evaluate on the test patients; they are few, so each process has all of them."""
        began, training = time.perf_counter(), model.training
        person, blood, targets = (tensor.to(device) for tensor in self.test)
        with torch.no_grad(), model.at_max_bits():
            error = functional.mse_loss(model.eval()(person, blood)[PROGRESSION], targets)
        model.train(training)
        metrics = {"r_squared": float(1 - error / targets.var(correction=0))}
        return Evaluation(step, float(error), metrics, len(targets), time.perf_counter() - began)

    def calibration_inputs(self, share: Share = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs of batches after the last step."""
        for step in range(share.index, self.recipe.train.calibration_batches, share.count):
            yield self._batch(self.total_steps + step, WHOLE)[:2]

    def divergence(self, reference: Any, outputs: Any) -> Tensor:
        """Return the summed squared difference of predictions."""
        return functional.mse_loss(outputs[PROGRESSION], reference[PROGRESSION], reduction="sum")

    def describe(self) -> dict[str, Any]:
        """Describe the data for the report."""
        train, test = self.samples
        data = {"name": self.recipe.data.name, "train_patients": train, "test_patients": test}
        return {"data": data, "classes": (), "preprocessing": {}}
