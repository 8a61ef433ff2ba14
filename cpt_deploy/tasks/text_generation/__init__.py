"""The task of generating text by a language model."""

from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.text_generation.task import TextGeneration

TASK: Task = TextGeneration()

__all__ = ["TASK", "TextGeneration"]
