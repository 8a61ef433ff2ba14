"""The networks and data sets that image classification knows by name."""

from cpt_deploy.data import datasets, load_images
from cpt_deploy.errors import CptError, UsageError
from cpt_deploy.models import describe_model
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
from cpt_deploy.tasks.catalogs import DataEntry, ModelEntry, ModelSize

_OWN_SHAPE, _LIBRARY_SHAPE = (3, 32, 10), (3, 224, 1000)
"""Usual channels, side and classes of the project's own networks, and of those of libraries."""


def model_entry(name: str, size: ModelSize) -> ModelEntry:
    """Count the parameters and multiply-accumulates of a network."""
    usual = _LIBRARY_SHAPE if "/" in name else _OWN_SHAPE
    channels, side, classes = size.channels or usual[0], size.side or usual[1], size.classes or usual[2]
    shape = (channels, side, side)
    parameters = macs = problem = None
    try:
        summary = describe_model(name, num_classes=classes, in_channels=channels, input_size=(side, side))
        parameters, macs = summary.parameters, summary.macs
    except UsageError as error:
        problem = error.message
    return ModelEntry(
        name,
        IMAGE_CLASSIFICATION,
        parameters,
        macs,
        " x ".join(map(str, shape)),
        str(classes),
        problem,
        {"input": list(shape), "classes": classes},
    )


def data_entries(pattern: str) -> list[DataEntry]:
    """Return the data sets whose names match a shell pattern."""
    return [_entry(name) for name in datasets.names(pattern)]


def _entry(name: str) -> DataEntry:
    info = datasets.get(name)
    try:
        load_images(name, split="test")
        problem = None
    except CptError as error:
        problem = error.message
    train, test = map(str, info.images)
    facts = {"classes": info.classes, "images": info.images}
    return DataEntry(
        name, IMAGE_CLASSIFICATION, info.summary, (str(info.classes), train, test), info.obtain, problem, facts
    )
