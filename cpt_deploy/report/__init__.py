"""Pictures of what happened. Matplotlib is imported when one is drawn, torch never."""

from cpt_deploy.report.curves import plot_curves
from cpt_deploy.report.family import FamilyMember, plot_family

__all__ = ["FamilyMember", "plot_curves", "plot_family"]
