"""Plots and pages of results. Matplotlib is imported only when a plot is drawn; torch is never imported.

Functions that plot raise `MissingExtraError` if Matplotlib is not installed, and `OSError` if a file cannot be read or
written.
"""

from cpt_deploy.report.benchmark_plot import plot_benchmark
from cpt_deploy.report.comparison_plot import ComparedGroup, plot_comparison
from cpt_deploy.report.curves import plot_curves
from cpt_deploy.report.figures import check_plot_path
from cpt_deploy.report.landscape_plot import LandscapePanel, plot_landscapes
from cpt_deploy.report.pages.validation_page import render_validation_page
from cpt_deploy.report.range_plot import plot_range_test
from cpt_deploy.report.schedule_plot import plot_schedules
from cpt_deploy.report.seed_curves import SeedBand, SeedCurves, plot_seed_curves
from cpt_deploy.report.sweep_plot import SweepPoint, plot_sweep

__all__ = [
    "ComparedGroup",
    "LandscapePanel",
    "SeedBand",
    "SeedCurves",
    "SweepPoint",
    "check_plot_path",
    "plot_benchmark",
    "plot_comparison",
    "plot_curves",
    "plot_landscapes",
    "plot_range_test",
    "plot_schedules",
    "plot_seed_curves",
    "plot_sweep",
    "render_validation_page",
]
