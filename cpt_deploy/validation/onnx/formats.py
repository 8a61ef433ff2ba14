"""Load the further formats of a bundle's model as functions from inputs to outputs by name."""

from importlib.util import find_spec
from typing import Any

import numpy.typing as npt

from cpt_deploy.bundle import FORMATS, Bundle
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.errors import BundleError, MissingExtraError
from cpt_deploy.validation.accuracy.samples import Arrays, Runtime


def program_files(bundle: Bundle) -> list[str]:
    """Return the names of the files of formats that need PyTorch."""
    return [FORMATS[name].file for name in bundle.formats if not FORMATS[name].always]


def load_formats(bundle: Bundle) -> dict[str, Runtime]:
    """Load each further format of a bundle.

    Returns:
        Functions from inputs to outputs by name, by the format's name.

    Raises:
        MissingExtraError: If there is such a format and PyTorch is not installed.
        BundleError: If PyTorch cannot load a format.
    """
    names = [name for name in bundle.formats if not FORMATS[name].always]
    if names and find_spec("torch") is None:
        raise MissingExtraError(
            f"Expected PyTorch for {FORMATS[names[0]].file}, but it is not installed",
            extra="train",
        )
    return {name: _load(bundle, name) for name in names}


def _load(bundle: Bundle, name: str) -> Runtime:
    import torch
    from torch.utils._pytree import tree_leaves

    # Imported here, since everything else works without PyTorch and must not load it.
    from cpt_deploy.export.programs import load_program

    path, signature = bundle.path / FORMATS[name].file, bundle.signature
    try:
        program = load_program(name, path)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BundleError(
            f"Expected PyTorch to load {path}, but got: {reason}", hint="export the bundle again with this PyTorch"
        ) from error

    def run(inputs: Arrays) -> dict[str, npt.NDArray[Any]]:
        given = checked_inputs(signature, inputs)
        results = tree_leaves(program(*(torch.from_numpy(given[tensor.name]) for tensor in signature.inputs)))
        return {tensor.name: result.numpy() for tensor, result in zip(signature.outputs, results, strict=True)}

    return run
