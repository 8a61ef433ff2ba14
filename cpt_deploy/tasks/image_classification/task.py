"""Image classification as a `Task`."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.bundle import Processor
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
from cpt_deploy.signature import Signature
from cpt_deploy.tasks.catalogs import DataCheck, DataEntry, ModelEntry, ModelSize
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cpt_deploy.bundle import ImageProcessor
    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.tasks.image_classification.training import Classification
    from cpt_deploy.training import RunDirectory, RunReport
    from cpt_deploy.validation import Accuracy, Samples


class ImageClassification(Task):
    """See `Task`."""

    name = IMAGE_CLASSIFICATION
    unit = "images"
    processor = "cpt_deploy.bundle.processors.image_processor:ImageProcessor"
    adapter = "cpt_serving.adapters.images:ImageAdapter"

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "Classification":
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.training import load_classification

        return load_classification(recipe, device, processes)

    def read_processor(self, report: "RunReport", directory: "RunDirectory") -> "ImageProcessor":
        """Return preprocessing and labels, which the report has, see `Task`."""
        from cpt_deploy.bundle import ImageProcessor, Preprocessing

        return ImageProcessor(Preprocessing.from_dict(report.preprocessing), report.classes)

    def build_model(self, recipe: Recipe, processor: Processor) -> "QuantizedModel":
        """See `Task`."""
        from cpt_deploy.training.loop.setup import build_cpt_model

        own = _expected(processor)
        return build_cpt_model(recipe, len(own.labels), own.preprocessing, trained=True)

    def samples(
        self, data: str, root: Path | None, processor: Processor, signature: Signature, limit: int | None
    ) -> "Samples":
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.samples import test_samples

        return test_samples(data, root, _expected(processor), limit)

    def scoring(self) -> "Accuracy":
        """See `Task`."""
        from cpt_deploy.validation import Accuracy

        return Accuracy()

    def source_network(self, path: Path, model: str | None, processor: Processor) -> "nn.Module":
        """See `Task`."""
        from cpt_deploy.models.weights_source import WeightsSource

        own = _expected(processor)
        return WeightsSource.read(path, model).build(own.preprocessing.input_shape, len(own.labels))

    def model_names(self, pattern: str | None) -> list[str]:
        """See `Task`; without a pattern, the project's own networks."""
        from cpt_deploy.models.catalog import model_names, models

        return model_names(pattern) if pattern else models.names("*")

    def describe_model(self, name: str, size: ModelSize) -> ModelEntry:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.catalog import model_entry

        return model_entry(name, size)

    def known_data(self, pattern: str) -> list[DataEntry]:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.catalog import data_entries

        return data_entries(pattern)

    def check_data(self, data: str, root: Path | None, reporter: Reporter) -> DataCheck:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.check import check_images

        return check_images(data, root, reporter)

    def example_request(self, address: str) -> str:
        """See `Task`."""
        return f"-F file=@image.png {address}/predict"


def _expected(processor: Processor) -> "ImageProcessor":
    from cpt_deploy.bundle import ImageProcessor

    if not isinstance(processor, ImageProcessor):
        raise TypeError(f"Expected an ImageProcessor, but got {type(processor).__name__}")
    return processor
