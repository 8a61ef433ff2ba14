"""The diabetes table of scikit-learn: 442 patients, ten measurements, and the progress of the disease a year later."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import TensorProcessor

PERSON, BLOOD, PROGRESSION = "person", "blood", "progression"
"""Names of the two inputs and of the output."""
PROCESSOR = TensorProcessor(
    features={PERSON: ("age", "sex", "bmi", "bp"), BLOOD: ("s1", "s2", "s3", "s4", "s5", "s6")},
    units={PROGRESSION: "disease progression, hundreds"},
)
FIFTH = 5
"""Each fifth patient is a test sample."""

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False)
class Table:
    """The rows of a split.

    Args:
        inputs: The two inputs, float32 (N, 4) and (N, 6), standardised by scikit-learn.
        targets: Disease progression in hundreds, float32 (N, 1).
    """

    inputs: dict[str, npt.NDArray[np.float32]]
    targets: npt.NDArray[np.float32]


def load_table(split: Split, limit: int | None = None) -> Table:
    """Load the rows of a split, or the first `limit` of them."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    number = np.arange(len(table.data))
    rows = number[(number % FIFTH == 0) == (split == "test")][:limit]
    values = (20 * table.data[rows]).astype(np.float32)  # columns of unit norm become of about unit variance
    columns = [list(table.feature_names).index(name) for names in PROCESSOR.features.values() for name in names]
    person, blood = np.split(values[:, columns], [len(PROCESSOR.features[PERSON])], axis=1)
    inputs = {PERSON: np.ascontiguousarray(person), BLOOD: np.ascontiguousarray(blood)}
    return Table(inputs, (table.target[rows, None] / 100).astype(np.float32))
