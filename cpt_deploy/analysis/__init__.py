"""Analysis of a trained network's minimum: the loss around it, its curvature, its sharpness."""

from cpt_deploy.analysis.landscape import Grid, Landscape, landscape_of
from cpt_deploy.analysis.landscape_files import LandscapeFiles, LandscapeSettings
from cpt_deploy.analysis.minimum import Minimum, load_minimum
from cpt_deploy.analysis.sharpness import Sharpness, SharpnessSettings, measure_sharpness

__all__ = [
    "Grid",
    "Landscape",
    "LandscapeFiles",
    "LandscapeSettings",
    "Minimum",
    "Sharpness",
    "SharpnessSettings",
    "landscape_of",
    "load_minimum",
    "measure_sharpness",
]
