"""Text generation as a `Task`, which delegates to the other modules of this folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.bundle import Bundle
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import TEXT_GENERATION
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import ExportOptions, ExportSummary
from cpt_deploy.tasks.reporting import Reporter

if TYPE_CHECKING:
    import torch

    from cpt_deploy.tasks.text_generation.export import TextExport
    from cpt_deploy.tasks.text_generation.sweep import TextSweep
    from cpt_deploy.tasks.text_generation.training import LanguageModelling


class TextGeneration:
    """See `Task`."""

    name = TEXT_GENERATION
    pipeline_tag = "text-generation"
    unit = "tokens"
    adapter: str | None = "cpt_serving.adapters.text:TextAdapter"

    def knows(self, data: str) -> bool:
        """Return whether the data are a known corpus or a text file."""
        from cpt_deploy.data.text import is_corpus

        return is_corpus(data)

    def load_training(self, recipe: Recipe, device: "torch.device", processes: int) -> "LanguageModelling":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.training import load_language_modelling

        return load_language_modelling(recipe)

    def open_bundle(self, path: Path) -> Bundle:
        """See `Task`."""
        return Bundle.open(path)

    def begin_export(self, run_dir: Path, options: ExportOptions, data_dir: Path | None) -> "TextExport":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.export import begin_export

        return begin_export(run_dir, options, data_dir)

    def describe_export(self, bundle: Bundle) -> ExportSummary:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.export_summary import describe_export

        return describe_export(bundle)

    def check_validation(self, options: ValidationOptions) -> None:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.validation import check_options

        check_options(options)

    def validate(
        self,
        bundle: Bundle,
        options: ValidationOptions,
        origin: Origin,
        reporter: Reporter,
        *,
        require_exact: bool,
    ) -> Evidence:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.validation import validate_bundle

        return validate_bundle(bundle, options, origin, reporter, require_exact=require_exact)

    def check_bundle(self, bundle: Bundle, provider: str, *, require_exact: bool) -> BundleCheck:
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.validation import check_bundle

        return check_bundle(bundle, provider)

    def sweep(self, run_dir: Path, data_dir: Path | None, limit: int | None) -> "TextSweep":
        """See `Task`."""
        from cpt_deploy.tasks.text_generation.sweep import TextSweep

        return TextSweep(run_dir, data_dir, limit)

    def example_request(self, address: str) -> str:
        """See `Task`."""
        return """-d '{"prompt": "The"}' """ + f"{address}/generate"
