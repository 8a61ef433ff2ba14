"""Describe a bundle's labels and preprocessing in the keys of timm and Hugging Face, for its JSON files."""

from collections.abc import Sequence
from typing import Any

from cpt_deploy.bundle.processors.pixel_format import PixelFormat
from cpt_deploy.bundle.processors.preprocessing import Preprocessing

PIXELS = "cpt_pixels"
"""The key of preprocessor_config.json on the bytes that a model takes."""


def described_ends(labels: Sequence[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the entries of config.json on labels and inputs, in the keys of timm and transformers."""
    return {
        "num_classes": len(labels),
        "label_names": list(labels),
        "pretrained_cfg": preprocessing.to_timm() | {"num_classes": len(labels)},
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def described_preprocessing(preprocessing: Preprocessing, pixels: PixelFormat | None) -> dict[str, Any]:
    """Return the content of preprocessor_config.json: Hugging Face's keys, and this project's own.

    Args:
        preprocessing: How an image becomes the model's input; its normalisation is inside of a model that takes bytes.
        pixels: The bytes that the model takes, or None.
    """
    described = preprocessing.to_huggingface() | {"cpt": preprocessing.to_dict()}
    if pixels is None:
        return described
    last = "channels_last" if pixels.layout == "NHWC" else "channels_first"
    return described | {"do_rescale": False, "do_normalize": False, "data_format": last, PIXELS: pixels.to_dict()}
