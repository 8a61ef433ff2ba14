"""Validate a classifier: on labelled images, against its run or its float model, or without data."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, update_validation
from cpt_deploy.bundle.layout import VALIDATION_PAGE
from cpt_deploy.bundle.processors.image_processor import exported_labels, exported_preprocessing
from cpt_deploy.errors import BundleError, MissingExtraError, UsageError
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, ValidationOptions
from cpt_deploy.tasks.exporting import SOURCE_MODEL, dataset_name
from cpt_deploy.tasks.image_classification.validation_summary import summarize
from cpt_deploy.tasks.reporting import Reporter
from cpt_deploy.validation import RecordedAccuracy, Reference, compare_constants, constant_reasons, validate
from cpt_deploy.validation.accuracy.noninferiority import MAX_DROP

if TYPE_CHECKING:
    from torch import nn


def check_options(options: ValidationOptions) -> None:
    """Check the options of a validation, see `Task`."""
    if options.run is not None and options.source is not None:
        raise UsageError("Expected either --run or --from, but got both", hint="a bundle has one origin")
    if options.page is None:
        return
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "Expected Matplotlib for --html, but it is not installed", hint="pip install 'cpt-deploy[train]'"
        )
    if options.page.is_dir() or not options.page.parent.is_dir():
        found = "a directory" if options.page.is_dir() else f"no directory {readable.path(options.page.parent)}"
        raise UsageError(f"Expected --html to name a file that can be written, but there is {found}")


def validate_bundle(
    bundle: Bundle, options: ValidationOptions, origin: Origin, reporter: Reporter, *, require_exact: bool
) -> Evidence:
    """Measure a bundle on a data set's test images and store the evidence in it, see `Task`."""
    from cpt_deploy.data import load_images
    from cpt_deploy.report import render_validation_page

    reference = reference_of(bundle, origin)
    images = load_images(options.data, split="test", root=options.data_dir)
    max_drop = options.max_drop
    if max_drop is None and reference is not None and not options.no_gate:
        max_drop = MAX_DROP
    with reporter.bar("validating", min(options.limit or len(images), len(images))) as bar:
        report = validate(
            bundle,
            images,
            trained=reference,
            max_drop=max_drop,
            allow_undecided=options.allow_undecided,
            require_exact=require_exact,
            limit=options.limit,
            provider=options.provider,
            reporter=bar,
        )
    content = report.to_dict()
    page = (
        render_validation_page(content, bundle.expect_processor(ImageProcessor).labels)
        if find_spec("matplotlib") is not None
        else None
    )
    update_validation(bundle, content, report.evaluation_results(), page=page)
    if page is not None and options.page is not None:
        options.page.write_text(page, encoding="utf-8")
    return Evidence(
        passed=report.passed,
        verdict=report.verdict,
        reasons=report.reasons,
        undecided=report.undecided,
        content=content,
        summary=summarize(report),
        report=report,
        page=None if page is None else options.page or bundle.path / VALIDATION_PAGE,
    )


def check_bundle(bundle: Bundle, provider: str, *, require_exact: bool) -> BundleCheck:
    """Check golden sample and constants, see `Task`."""
    # Compare the constants first: onnxruntime may not even load a file with an edited one.
    constants = compare_constants(bundle) if find_spec("onnx") is not None else None
    check = OnnxRuntimeModel(bundle.onnx_path, bundle.signature, provider=provider).reproduce_golden(bundle.golden)
    reasons = constant_reasons(constants)
    if require_exact and not check.reproduced:
        reasons.append(f"{check.mismatches} of {check.values} {check.what} of the golden sample were not reproduced")
    held = "" if constants is None or constants.differences else f", {constants.compared:,} constants are as exported"
    statement = (
        f"{check.values - check.mismatches} of {check.values} {check.what} of the golden sample are reproduced by "
        f"onnxruntime, checksums hold{held}"
    )
    return BundleCheck(reasons, statement, {"golden": check, "constants": constants})


def reference_of(bundle: Bundle, origin: Origin) -> Reference | None:
    """Return the model that a bundle is compared with: that of its run, or the float model that it was made from."""
    if origin.source is not None:
        return source_reference(bundle, origin.source)
    return None if origin.run is None else trained_reference(origin.run)


def trained_reference(run_dir: Path) -> Reference:
    """Return a run's model at max_bits, with the run's own preprocessing, classes and accuracy.

    Raises:
        CheckpointError: If the run is unfinished or damaged.
    """
    import torch

    from cpt_deploy.training import load_run

    run = load_run(run_dir)

    def forward(inputs: Any) -> Any:
        with torch.no_grad(), run.model.at_max_bits():
            return run.model(torch.from_numpy(inputs)).numpy()

    test, digest = run.report.test, run.report.data.get("test_sha256")
    recorded = RecordedAccuracy(run.report.figure, test.samples, dataset_name(run.recipe.data.name), digest)
    return Reference(forward, run.preprocessing, run.classes, readable.path(run_dir), recorded)


def source_reference(bundle: Bundle, path: Path) -> Reference:
    """Return the float model of a calibrated bundle, with the preprocessing and the labels of the export.

    The file of a float model does not contain them, so the export records them in config.json.

    Raises:
        BundleError: If config.json does not contain them.
        CptError: As `source_network` does.
    """
    import torch

    preprocessing = exported_preprocessing(bundle.config)
    if preprocessing is None:
        raise BundleError(
            f"Expected config.json of {readable.path(bundle.path)} to say how images became inputs, but it does not",
            hint="export the bundle again",
        )
    network = source_network(bundle, path)

    def forward(inputs: Any) -> Any:
        with torch.no_grad():
            return network(torch.from_numpy(inputs)).numpy()

    labels = exported_labels(bundle.config) or bundle.expect_processor(ImageProcessor).labels
    return Reference(forward, preprocessing, labels, "config.json, as it was exported")


def source_network(bundle: Bundle, path: Path) -> "nn.Module":
    """Return the float model of a calibrated bundle, in evaluation mode.

    Raises:
        CptError: As `open_source` and `SourceModel.build` do.
    """
    from cpt_deploy.models.imported import open_source

    opened = open_source(path, bundle.facts.get(SOURCE_MODEL))
    processor = bundle.expect_processor(ImageProcessor)
    return opened.build(processor.preprocessing.input_shape, len(processor.labels))
