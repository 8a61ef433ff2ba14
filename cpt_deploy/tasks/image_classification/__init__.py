"""The task of classifying images."""

from cpt_deploy.bundle import Bundle
from cpt_deploy.tasks.image_classification.task import ImageClassification
from cpt_deploy.tasks.interface import Task

TASK: Task[Bundle] = ImageClassification()

__all__ = ["TASK", "ImageClassification"]
