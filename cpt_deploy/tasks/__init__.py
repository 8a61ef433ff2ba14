"""Tasks (image classification, text generation): one interface, and one folder per task with the same file names.

None imports torch until a function needs it.
"""

from cpt_deploy.tasks.catalogs import DataEntry, ModelEntry, ModelSize
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, Table, ValidationOptions, ValidationSummary
from cpt_deploy.tasks.exporting import BitAllocation, ExportOptions, ExportSummary, Sensitivity
from cpt_deploy.tasks.finding import task_named, task_of_run
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import SILENT, Progress, Reporter

__all__ = [
    "SILENT",
    "BitAllocation",
    "BundleCheck",
    "DataEntry",
    "Evidence",
    "ExportOptions",
    "ExportSummary",
    "ModelEntry",
    "ModelSize",
    "Origin",
    "Progress",
    "Reporter",
    "Sensitivity",
    "Table",
    "Task",
    "ValidationOptions",
    "ValidationSummary",
    "task_named",
    "task_of_run",
]
