"""The task of classifying images."""

from cpt_deploy.tasks.image_classification.task import ImageClassification
from cpt_deploy.tasks.interface import Task

TASK: Task = ImageClassification()

__all__ = ["TASK", "ImageClassification"]
