"""Describe a bundle's labels and preprocessing in the keys of timm and Hugging Face, for its JSON files."""

from collections.abc import Sequence
from typing import Any

from cpt_deploy.bundle.processors.preprocessing import Preprocessing


def described_ends(labels: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries of config.json on labels and inputs, in the keys of timm and transformers."""
    return {
        "num_classes": len(labels),
        "label_names": list(labels),
        "pretrained_cfg": preprocessing.to_timm() | {"num_classes": len(labels)},
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def described_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: Hugging Face's keys, and this project's own under "cpt"."""
    return preprocessing.to_huggingface() | {"cpt": preprocessing.to_dict()}
