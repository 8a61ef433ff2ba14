"""The commands as functions: they return data, report progress to a reporter, and print nothing.

Importing this package does not import torch; functions import it where they need it.
"""

from cpt_deploy.tasks import (
    BundleCheck,
    Evidence,
    ExportOptions,
    ExportSummary,
    Progress,
    Reporter,
    Table,
    ValidationOptions,
)
from cpt_deploy.workflows.benchmark import benchmark_bundle
from cpt_deploy.workflows.catalogs import fetch_data, known_data, known_models
from cpt_deploy.workflows.dataset_check import check_dataset
from cpt_deploy.workflows.experiments.grids import TrainedGrid, train_grid
from cpt_deploy.workflows.experiments.range_test import find_lower_bound, with_lower_bound
from cpt_deploy.workflows.experiments.sweep import Sweep, sweep_run
from cpt_deploy.workflows.export import best_of, describe_export, export_run
from cpt_deploy.workflows.imported.float_models import FloatModel
from cpt_deploy.workflows.imported.inspected_files import inspect_model, validate_onnx_file, write_file_report
from cpt_deploy.workflows.imported.onnx_files import export_float_model
from cpt_deploy.workflows.origins import find_origin, own_data
from cpt_deploy.workflows.places import RUNS, bundle_at, run_at
from cpt_deploy.workflows.prediction import Classifier, image_classifier
from cpt_deploy.workflows.server_process import running_server
from cpt_deploy.workflows.validation import check_bundle, validate_bundle

__all__ = [
    "RUNS",
    "BundleCheck",
    "Classifier",
    "Evidence",
    "ExportOptions",
    "ExportSummary",
    "FloatModel",
    "Progress",
    "Reporter",
    "Sweep",
    "Table",
    "TrainedGrid",
    "ValidationOptions",
    "benchmark_bundle",
    "best_of",
    "bundle_at",
    "check_bundle",
    "check_dataset",
    "describe_export",
    "export_float_model",
    "export_run",
    "fetch_data",
    "find_lower_bound",
    "find_origin",
    "image_classifier",
    "inspect_model",
    "known_data",
    "known_models",
    "own_data",
    "run_at",
    "running_server",
    "sweep_run",
    "train_grid",
    "validate_bundle",
    "validate_onnx_file",
    "with_lower_bound",
    "write_file_report",
]
