"""Classification of images."""

from cpt_deploy.tasks.image_classification.task import ImageClassification

TASK = ImageClassification()

__all__ = ["TASK", "ImageClassification"]
