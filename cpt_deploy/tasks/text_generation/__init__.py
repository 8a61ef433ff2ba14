"""Generation of text by a language model."""

from cpt_deploy.tasks.text_generation.task import TextGeneration

TASK = TextGeneration()

__all__ = ["TASK", "TextGeneration"]
