"""Tasks (image classification, text generation): one interface, and one folder per task with the same file names.

None imports torch until a function needs it.
"""

from cpt_deploy.tasks.catalogs import DataCheck, DataEntry, ModelEntry, ModelSize
from cpt_deploy.tasks.evidence import BundleCheck, Evidence, Origin, Table, ValidationOptions
from cpt_deploy.tasks.exporting import ExportOptions, ExportSummary
from cpt_deploy.tasks.finding import task_named, task_of_run
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.reporting import SILENT, Progress, Reporter

__all__ = [
    "SILENT",
    "BundleCheck",
    "DataCheck",
    "DataEntry",
    "Evidence",
    "ExportOptions",
    "ExportSummary",
    "ModelEntry",
    "ModelSize",
    "Origin",
    "Progress",
    "Reporter",
    "Table",
    "Task",
    "ValidationOptions",
    "task_named",
    "task_of_run",
]
