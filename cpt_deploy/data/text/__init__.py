"""Text data: corpora by name or path, their vocabulary, and the chunks for training and evaluating language models."""

from cpt_deploy.data.text.corpora import Corpus, TextSplit, corpora, is_corpus, load_corpus
from cpt_deploy.data.text.streams import Chunk, evaluation_chunks, steps_per_epoch, training_chunk, training_rows
from cpt_deploy.data.text.vocabulary import build_tokenizer, token_digest

__all__ = [
    "Chunk",
    "Corpus",
    "TextSplit",
    "build_tokenizer",
    "corpora",
    "evaluation_chunks",
    "is_corpus",
    "load_corpus",
    "steps_per_epoch",
    "token_digest",
    "training_chunk",
    "training_rows",
]
