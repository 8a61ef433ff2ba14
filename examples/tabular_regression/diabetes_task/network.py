"""A network with two inputs."""

import torch
from torch import Tensor, nn

from diabetes_task.table import PROGRESSION


class TwoBranchMlp(nn.Module):
    """A Linear layer for each input, and two more for both together.

    Args:
        width: Number of units of each hidden layer.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.person, self.blood = nn.Linear(4, width), nn.Linear(6, width)
        self.both = nn.Linear(2 * width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, person: Tensor, blood: Tensor) -> dict[str, Tensor]:
        """Return the disease progression in hundreds, (N, 1), for standardised measurements, (N, 4) and (N, 6)."""
        branches = [self.person(person).relu(), self.blood(blood).relu()]
        return {PROGRESSION: self.last(self.both(torch.cat(branches, dim=1)).relu())}
