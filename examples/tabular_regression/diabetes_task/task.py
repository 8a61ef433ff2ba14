"""The task: where its parts are. Nothing here imports torch before it is needed, so that `cpt --help` stays fast."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy.bundle import CardFields, Processor, TensorProcessor
from cpt_deploy.recipe import Recipe
from cpt_deploy.signature import Signature
from cpt_deploy.tasks import Task
from diabetes_task.table import PROCESSOR, PROGRESSION, Table, load_table

if TYPE_CHECKING:
    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.training import TrainingTask
    from cpt_deploy.validation import Batch, RSquared, Samples


class DiabetesRegression(Task):
    """Predict the progress of diabetes from two groups of measurements."""

    name = "tabular-regression"
    unit = "patients"
    processor = TensorProcessor

    def load_training(self, recipe: Recipe, device: Any, processes: int) -> "TrainingTask":
        """Open the table for a run."""
        from diabetes_task.training import TableTraining

        return TableTraining(recipe)

    def build_model(self, recipe: Recipe, processor: Processor) -> "QuantizedModel":
        """Build the network of a finished run."""
        from diabetes_task.training import build_model

        return build_model(recipe, trained=True)

    def read_processor(self, report: Any, directory: Any) -> TensorProcessor:
        """Return the processor, which is the same for all runs."""
        return PROCESSOR

    def samples(
        self, data: str, root: Path | None, processor: Processor, signature: Signature, limit: int | None
    ) -> "Samples":
        """Return the test patients."""
        from cpt_deploy.validation import Samples

        table, whole = load_table("test", limit), load_table("test")
        digest = hashlib.sha256(whole.targets.tobytes()).hexdigest()
        return Samples(data, "test", digest, len(whole.targets), len(table.targets), lambda: _batches(table))

    def scoring(self) -> "RSquared":
        """Score predictions by their squared errors."""
        from cpt_deploy.validation import RSquared

        return RSquared(PROGRESSION)

    def card(self, run: Any) -> CardFields:
        """Describe the model on its card."""
        return CardFields(description="Progress of diabetes within a year, from ten measurements.")

    def example_request(self, address: str) -> str:
        """Return a request with the first test patient."""
        table = load_table("test", 1)
        rows = {
            name: [[round(float(value), 3) for value in row] for row in rows] for name, rows in table.inputs.items()
        }
        return f"-H 'Content-Type: application/json' -d '{json.dumps({'inputs': rows})}' {address}/predict"


def _batches(table: Table) -> "Iterator[Batch]":
    """Return one batch: the table is small."""
    from cpt_deploy.validation import Batch

    yield Batch(table.inputs, table.targets)
