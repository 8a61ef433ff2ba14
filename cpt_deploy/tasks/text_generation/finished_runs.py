"""The vocabulary of a finished run, and its perplexity measured again."""

import hashlib

import torch

from cpt_deploy.bundle import TextProcessor
from cpt_deploy.bundle.processors.tokenization import read_tokenizer
from cpt_deploy.data.text import evaluation_chunks
from cpt_deploy.errors import CheckpointError
from cpt_deploy.metric import PERPLEXITY
from cpt_deploy.tasks.text_generation.evaluation import evaluate_text
from cpt_deploy.tasks.text_generation.training import load_language_modelling
from cpt_deploy.training.reports import RunReport
from cpt_deploy.training.run_directory.run_directory import RunDirectory
from cpt_deploy.training.run_directory.saved_runs import TrainedRun


def read_vocabulary(report: RunReport, directory: RunDirectory) -> TextProcessor:
    """Return the processor of a finished run, with the vocabulary that the model was trained with.

    Raises:
        CheckpointError: If the vocabulary is another one.
    """
    tokenizer = read_tokenizer(directory.tokenizer)
    known = report.data["vocabulary"]
    digest = hashlib.sha256(directory.tokenizer.read_bytes()).hexdigest()
    if tokenizer.size != known["size"] or digest != known["sha256"]:
        raise CheckpointError(
            f"Expected the vocabulary of {known['size']} tokens that the model was trained with at "
            f"{directory.tokenizer}, but got another one, of {tokenizer.size} tokens",
            hint="copy the run's own tokenizer.json back",
        )
    return TextProcessor(tokenizer)


def perplexity_of_run(run: TrainedRun) -> float:
    """Return the perplexity of a run's model on its test text, measured as after training."""
    training = load_language_modelling(run.recipe)
    text, rows = run.recipe.data.text, run.recipe.train.eval_batch_size
    chunks = evaluation_chunks(training.ids("test"), rows, text.sequence, text.context)
    result = evaluate_text(run.model, chunks, device=torch.device("cpu"))
    assert result is not None
    return result.metrics[PERPLEXITY.name]
