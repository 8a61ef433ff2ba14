"""Import float models that were trained elsewhere: ONNX files, and weights for a model that is known by name."""

from cpt_deploy.models.imported.source import SourceModel, open_source
from cpt_deploy.models.imported.weights_source import WeightsSource

__all__ = [
    "SourceModel",
    "WeightsSource",
    "open_source",
]
