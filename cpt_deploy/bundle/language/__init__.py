"""The bundle of a language model: its state, its tokenizer, its golden sample, and its onnxruntime model."""

from cpt_deploy.bundle.language.bundle import LanguageBundle, is_language, open_bundle
from cpt_deploy.bundle.language.golden import GoldenText, GoldenTextCheck, compare_golden_text
from cpt_deploy.bundle.language.manifest import BATCH, LOGITS_NAME, PAST, TOKENS_NAME, LanguageManifest, StateTensor
from cpt_deploy.bundle.language.runtime import LanguageModel, State
from cpt_deploy.bundle.language.text import END, Decoder, TextCodec
from cpt_deploy.bundle.language.writing import LanguageContents, update_language_validation, write_language_bundle

__all__ = [
    "BATCH",
    "END",
    "LOGITS_NAME",
    "PAST",
    "TOKENS_NAME",
    "Decoder",
    "GoldenText",
    "GoldenTextCheck",
    "LanguageBundle",
    "LanguageContents",
    "LanguageManifest",
    "LanguageModel",
    "State",
    "StateTensor",
    "TextCodec",
    "compare_golden_text",
    "is_language",
    "open_bundle",
    "update_language_validation",
    "write_language_bundle",
]
