"""Pictures of what happened. Matplotlib is imported when one is drawn, torch never."""

from cpt_deploy.report.curves import plot_curves

__all__ = ["plot_curves"]
