"""The task of generating text by a language model."""

from cpt_deploy.bundle import Bundle
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.text_generation.task import TextGeneration

TASK: Task[Bundle] = TextGeneration()

__all__ = ["TASK", "TextGeneration"]
