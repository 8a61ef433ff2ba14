"""Image classification as a `Task`, which delegates to the other modules of this folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.bundle import Bundle
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import ExportOptions, ExportSummary
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch

    from cpt_deploy.tasks.image_classification.export import ImageExport
    from cpt_deploy.tasks.image_classification.sweep import ImageSweep
    from cpt_deploy.tasks.image_classification.training import Classification


class ImageClassification:
    """See `Task`."""

    name = IMAGE_CLASSIFICATION
    pipeline_tag = "image-classification"
    unit = "images"
    adapter: str | None = "cpt_serving.adapters.images:ImageAdapter"

    def knows(self, data: str) -> bool:
        """Return False: data that no other task knows are images."""
        return False

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "Classification":
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.training import load_classification

        return load_classification(recipe, device, processes)

    def open_bundle(self, path: Path) -> Bundle:
        """See `Task`."""
        return Bundle.open(path)

    def begin_export(self, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> "ImageExport":
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.export import begin_export

        return begin_export(run_dir, options, data_dir)

    def describe_export(self, bundle: Bundle) -> ExportSummary:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.export_summary import describe_export

        return describe_export(bundle)

    def check_validation(self, options: ValidationOptions) -> None:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.validation import check_options

        check_options(options)

    def validate(
        self, bundle: Bundle, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
    ) -> Evidence:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.validation import validate_bundle

        return validate_bundle(bundle, options, origin, reporter, require_exact=require_exact)

    def check_bundle(self, bundle: Bundle, provider: str, *, require_exact: bool) -> BundleCheck:
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.validation import check_bundle

        return check_bundle(bundle, provider, require_exact=require_exact)

    def sweep(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> "ImageSweep":
        """See `Task`."""
        from cpt_deploy.tasks.image_classification.sweep import ImageSweep

        return ImageSweep(run_dir, limit)

    def example_request(self, address: str) -> str:
        """See `Task`."""
        return f"-F file=@image.png {address}/predict"
