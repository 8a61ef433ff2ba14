"""The task of generating text by a language model."""

from cpt_deploy.bundle.language import LanguageBundle
from cpt_deploy.tasks.interface import Task
from cpt_deploy.tasks.text_generation.task import TextGeneration

TASK: Task[LanguageBundle] = TextGeneration()

__all__ = ["TASK", "TextGeneration"]
