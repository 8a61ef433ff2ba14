"""Analysis of a trained network's minimum: the loss around it, its curvature, its sharpness."""

from cpt_deploy.analysis.curvature import LossHessian, TraceEstimate, estimate_trace, top_eigenvalues
from cpt_deploy.analysis.directions import filter_normalized, filter_norms, random_direction
from cpt_deploy.analysis.landscape import Grid, Landscape, Point, landscape_of, landscapes
from cpt_deploy.analysis.landscape_files import LandscapeFiles, LandscapeSettings
from cpt_deploy.analysis.minimum import Minimum, load_minimum, mean_loss
from cpt_deploy.analysis.sharpness import Sharpness, SharpnessSettings, ascent_rise, measure_sharpness

__all__ = [
    "Grid",
    "Landscape",
    "LandscapeFiles",
    "LandscapeSettings",
    "LossHessian",
    "Minimum",
    "Point",
    "Sharpness",
    "SharpnessSettings",
    "TraceEstimate",
    "ascent_rise",
    "estimate_trace",
    "filter_normalized",
    "filter_norms",
    "landscape_of",
    "landscapes",
    "load_minimum",
    "mean_loss",
    "measure_sharpness",
    "random_direction",
    "top_eigenvalues",
]
