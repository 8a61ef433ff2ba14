"""The model that a bundle is compared with: that of its run, or the float model that it was made from."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle, ImageProcessor, OnnxRuntimeModel, Processor
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.signature import Signature
from cpt_deploy.tasks import Origin, Task
from cpt_deploy.tasks.exporting import SOURCE_MODEL, dataset_name
from cpt_deploy.workflows.imported.float_models import ONNX_SUFFIX

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
        floats = bundle.processor
        if isinstance(floats, ImageProcessor):
            floats = replace(floats, pixels=None)
        samples = task.samples(data, data_dir, floats, bundle.signature, limit)
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

    forward = runtime_of(call, run.model.signature)
    again = task.measure_again(run, samples)
    processor = _in_format_of(bundle.processor, run.processor)
    return Reference(forward, processor, samples, readable.path(origin.run), recorded, again)


def source_reference(task: Task, bundle: Bundle, path: Path, samples: "Samples") -> "Reference":
    """Return the float model of a calibrated bundle.

    Its file does not contain how samples become inputs, so it has the processor of the bundle.
    """
    from cpt_deploy.validation import Reference

    if path.suffix == ONNX_SUFFIX:
        forward: Runtime = OnnxRuntimeModel(float_classifier(bundle, path), threads=None).run
    else:
        inputs = bundle.signature.inputs
        if isinstance(bundle.processor, ImageProcessor):
            inputs = (replace(bundle.processor, pixels=None).input,)
        forward = runtime_of(source_network(task, bundle, path), replace(bundle.signature, inputs=inputs))
    return Reference(forward, bundle.processor, samples, "config.json, as it was exported")


def _in_format_of(served: Processor, trained: Processor) -> Processor:
    """Return the processor of a run with the bytes that a bundle takes, which are chosen at export."""
    if isinstance(served, ImageProcessor) and isinstance(trained, ImageProcessor):
        return replace(trained, pixels=served.pixels)
    return trained


def float_classifier(bundle: Bundle, path: Path) -> bytes:
    """Return the ONNX file of a calibrated classifier's float model, from normalised images to logits.

    Raises:
        CptError: If the file is no such classifier.
    """
    from cpt_deploy.onnx_graph.reading.classifier import ImageClassifier

    processor = bundle.expect_processor(ImageProcessor)
    shape = processor.preprocessing.input_shape
    return ImageClassifier.read(path).network(shape, len(processor.labels)).original


def source_network(task: Task, bundle: Bundle, path: Path) -> "nn.Module":
    """Return the float model that a file has the weights of, in evaluation mode."""
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
