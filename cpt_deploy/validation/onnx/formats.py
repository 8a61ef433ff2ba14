"""Load the further formats of a bundle's model as functions from inputs to logits."""

from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle import FORMATS, Bundle
from cpt_deploy.errors import BundleError, MissingExtraError
from cpt_deploy.validation.accuracy.reference import TrainedModel
from cpt_deploy.validation.comparison import Logits


def program_files(bundle: Bundle) -> list[str]:
    """Return the names of the files of formats that need PyTorch."""
    return [FORMATS[name].file for name in bundle.formats if not FORMATS[name].always]


def load_formats(bundle: Bundle) -> dict[str, TrainedModel]:
    """Load each further format of a bundle.

    Returns:
        Functions from normalised images, float32 (N, C, H, W), to logits, float32 (N, K), by the format's name.

    Raises:
        MissingExtraError: If there is such a format and PyTorch is not installed.
        BundleError: If PyTorch cannot load a format.
    """
    names = [name for name in bundle.formats if not FORMATS[name].always]
    if names and find_spec("torch") is None:
        raise MissingExtraError(
            f"Expected PyTorch for {FORMATS[names[0]].file}, but it is not installed",
            hint="pip install 'cpt-deploy[train]'",
        )
    return {name: _load(bundle, name) for name in names}


def _load(bundle: Bundle, name: str) -> TrainedModel:
    import torch

    # Imported here, since everything else works without PyTorch and must not load it.
    from cpt_deploy.export.programs import load_program

    path = bundle.path / FORMATS[name].file
    try:
        program = load_program(name, path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BundleError(
            f"Expected PyTorch to load {path}, but got: {reason}", hint="export the bundle again with this PyTorch"
        ) from error

    def run(inputs: npt.NDArray[np.float32]) -> Logits:
        logits: Logits = program(torch.from_numpy(inputs)).numpy()
        return logits

    return run
