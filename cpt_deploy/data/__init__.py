"""Data sets by name or path, their augmentation, and batches that depend only on seed, epoch and index."""

from cpt_deploy.data.augmentation import Augmentation, build_augmentations
from cpt_deploy.data.batches import WHOLE, Share
from cpt_deploy.data.fitted import FittedImages
from cpt_deploy.data.images import ArrayImages, FileImages, ImageSet
from cpt_deploy.data.inputs import default_preprocessing, input_settings, resolve_preprocessing
from cpt_deploy.data.inspection import Findings, inspect_folder, inspect_images
from cpt_deploy.data.loaders import batches_per_epoch, eval_loader, train_loader, training_stream
from cpt_deploy.data.registry import datasets, fetch_dataset, image_folder, load_images
from cpt_deploy.data.selection import recipe_images

__all__ = [
    "WHOLE",
    "ArrayImages",
    "Augmentation",
    "FileImages",
    "Findings",
    "FittedImages",
    "ImageSet",
    "Share",
    "batches_per_epoch",
    "build_augmentations",
    "datasets",
    "default_preprocessing",
    "eval_loader",
    "fetch_dataset",
    "image_folder",
    "input_settings",
    "inspect_folder",
    "inspect_images",
    "load_images",
    "recipe_images",
    "resolve_preprocessing",
    "train_loader",
    "training_stream",
]
