"""Integer models made from trained language models, and their exact execution in NumPy."""

from cpt_deploy.integer.language.ends import IntegerEmbedding, IntegerHead
from cpt_deploy.integer.language.kinds import freeze_language_model, read_integer_model
from cpt_deploy.integer.language.lstm import IntegerLstm, freeze_lstm
from cpt_deploy.integer.language.model import IntegerLanguageModel
from cpt_deploy.integer.language.parts import IntegerLinear, IntegerTable, QuantizationParameters, Trace
from cpt_deploy.integer.language.transformer import IntegerTransformer, freeze_transformer

__all__ = [
    "IntegerEmbedding",
    "IntegerHead",
    "IntegerLanguageModel",
    "IntegerLinear",
    "IntegerLstm",
    "IntegerTable",
    "IntegerTransformer",
    "QuantizationParameters",
    "Trace",
    "freeze_language_model",
    "freeze_lstm",
    "freeze_transformer",
    "read_integer_model",
]
