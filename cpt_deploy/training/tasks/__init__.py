"""What a run can learn: to classify images, or to predict text."""

from cpt_deploy.training.tasks.interface import Final, StepOutcome, Task
from cpt_deploy.training.tasks.loading import is_language_model, load_corpus_of, load_task

__all__ = ["Final", "StepOutcome", "Task", "is_language_model", "load_corpus_of", "load_task"]
