"""The model that a bundle is compared with: that of its run, or the float model that it was made from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.signature import Signature
from cpt_deploy.tasks import Origin, Task
from cpt_deploy.tasks.exporting import SOURCE_MODEL, dataset_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from cpt_deploy.validation import Reference, Runtime, Samples


def reference_of(
    task: Task, bundle: Bundle, origin: Origin, data: str, data_dir: Path | None, limit: int | None
) -> "Reference | None":
    """Return the model that a bundle is compared with; None if its origin is not available.

    Args:
        task: The task of the bundle.
        bundle: The bundle.
        origin: Its origin.
        data: The data of the validation.
        data_dir: Folder of known data; None is the default.
        limit: Number of samples.

    Raises:
        CptError: If the origin or the data cannot be read.
    """
    if origin.source is not None:
        samples = task.samples(data, data_dir, bundle.processor, bundle.signature, limit)
        return source_reference(task, bundle, origin.source, samples)
    if origin.run is None:
        return None
    from cpt_deploy.training import load_run
    from cpt_deploy.validation import Recorded, Reference

    run = load_run(origin.run, data_dir=data_dir)
    samples = task.samples(data, data_dir, run.processor, run.model.signature, limit)
    recorded = Recorded(
        run.report.figure,
        run.report.test.samples,
        dataset_name(run.recipe.data.name),
        run.report.data.get("test_sha256"),
    )

    def call(*inputs: Any) -> Any:
        with run.model.at_max_bits():
            return run.model(*inputs)

    forward = runtime_of(call, bundle.signature)
    again = task.measure_again(run, samples)
    return Reference(forward, run.processor, samples, readable.path(origin.run), recorded, again)


def source_reference(task: Task, bundle: Bundle, path: Path, samples: "Samples") -> "Reference":
    """Return the float model of a calibrated bundle.

    Its file does not contain how samples become inputs, so it has the processor of the bundle.
    """
    from cpt_deploy.validation import Reference

    network = source_network(task, bundle, path)
    forward = runtime_of(network, bundle.signature)
    return Reference(forward, bundle.processor, samples, "config.json, as it was exported")


def source_network(task: Task, bundle: Bundle, path: Path) -> "nn.Module":
    """Return the float model of a calibrated bundle, in evaluation mode."""
    return task.source_network(path, bundle.facts.get(SOURCE_MODEL), bundle.processor)


def runtime_of(call: "Callable[..., Any]", signature: Signature) -> "Runtime":
    """Return a torch model as a function of arrays by name.

    Args:
        call: The model: takes the inputs in the order of the signature.
        signature: Its signature.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    def run(inputs: Any) -> dict[str, npt.NDArray[Any]]:
        given = checked_inputs(signature, inputs)
        with torch.no_grad():
            leaves = tree_leaves(call(*(torch.from_numpy(given[tensor.name]) for tensor in signature.inputs)))
        results = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {tensor.name: result.numpy() for tensor, result in zip(signature.outputs, results, strict=True)}

    return run
