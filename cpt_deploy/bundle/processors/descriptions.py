"""What the files of a bundle say of its labels and its preprocessing, in the keys of timm and Hugging Face."""

from collections.abc import Sequence
from typing import Any

from cpt_deploy.bundle.processors.preprocessing import Preprocessing


def described_ends(labels: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what config.json says of labels and inputs, in the keys of timm and transformers."""
    return {
        "num_classes": len(labels),
        "label_names": list(labels),
        "pretrained_cfg": preprocessing.to_timm() | {"num_classes": len(labels)},
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def described_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: Hugging Face's keys, and this project's own."""
    return preprocessing.to_huggingface() | {"cpt": preprocessing.to_dict()}
