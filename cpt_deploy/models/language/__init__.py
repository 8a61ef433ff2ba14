"""Language models: `lstm-lm` and `transformer-lm`, by name for recipes."""

from cpt_deploy.models.language.catalog import build_language_model, language_model_names
from cpt_deploy.models.language.lstm import LstmLanguageModel
from cpt_deploy.models.language.preparing import preparing_arguments
from cpt_deploy.models.language.summary import describe_language_model
from cpt_deploy.models.language.transformer import TransformerLanguageModel

__all__ = [
    "LstmLanguageModel",
    "TransformerLanguageModel",
    "build_language_model",
    "describe_language_model",
    "language_model_names",
    "preparing_arguments",
]
