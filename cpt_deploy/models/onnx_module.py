"""A network from an ONNX file as a PyTorch module that can be trained: `model.name=onnx:FILE`.

The file is read as by `cpt export --from`; each operator is called as a PyTorch layer or function. onnx2torch is not
used: it has no operators of opset 18 and later, which `torch.onnx` writes.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from cpt_deploy.errors import ConversionError, DataError
from cpt_deploy.models.onnx_functions import FUNCTIONS, Call
from cpt_deploy.models.onnx_layers import LAYERS
from cpt_deploy.onnx_graph.reading.classifier import ImageClassifier
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, Shape, attributes_of
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME

_UNFIT = re.compile(r"[^0-9A-Za-z_]+")
#: Allowed difference from onnxruntime, relative to the largest logit: float32 summation order.
_TOLERANCE = 1e-3


def build_onnx(
    path: Path, *, num_classes: int, in_channels: int, input_size: tuple[int, int], sha256: str = ""
) -> nn.Module:
    """Return the network of an image classifier's ONNX file, with its weights, for training.

    A fully connected last layer for another number of classes is replaced by one with random weights.

    Args:
        path: The file.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        input_size: Their height and width.
        sha256: Digest of the file, which a run records.

    Raises:
        DataError: If the file is missing or damaged, or has another digest.
        ConversionError: If it is no image classifier of such images, or an operator has no PyTorch form.
    """
    shape = (in_channels, *input_size)
    source = ImageClassifier.read(path)
    if sha256 not in ("", digest_of(path)):
        raise DataError(
            f"Expected the ONNX file of SHA-256 {sha256} at {path}, as when the run began, but it is another"
        )
    for known, wanted, what in zip(source.input_shape, shape, ("channels", "height", "width"), strict=True):
        if known not in (None, wanted):
            raise ConversionError(
                f"Expected images of the {what} that {path.name} is made for, {known}, but got {wanted}",
                hint=f"set data.input.{'channels' if what == 'channels' else 'size'}",
            )
    known_classes = source.classes or num_classes
    network = source.network(shape, known_classes)
    module = OnnxModule(network).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    expected = onnxruntime_logits(network, images.numpy())
    with torch.no_grad():
        logits = _logits(module, images, path.name)
    if logits.shape != expected.shape:
        raise ConversionError(
            f"Expected {path.name} to give logits of shape {list(expected.shape)} in PyTorch too, but got "
            f"{list(logits.shape)}"
        )
    difference = float((logits - torch.from_numpy(expected)).abs().max())
    if not difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-6):
        raise ConversionError(
            f"Expected {path.name} to give the same logits in PyTorch and onnxruntime, but they differ by "
            f"{difference:.3g}"
        )
    if num_classes != known_classes:
        module.replace_head(num_classes)
    return module


def _logits(module: nn.Module, images: Tensor, name: str) -> Tensor:
    try:
        logits: Tensor = module(images)
    except ConversionError:
        raise
    except Exception as error:  # whatever the functions of PyTorch raise for attributes that they do not have
        raise ConversionError(
            f"Expected PyTorch to compute the operators of {name}, but got: {str(error).partition(chr(10))[0]}",
            hint=f"it can be exported without training: cpt export --from {name}",
        ) from error
    return logits


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"Expected an ONNX file at {path}, but got: {error.strerror or error}") from error


def onnxruntime_logits(network: OnnxNetwork, images: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    """Return the logits that onnxruntime computes."""
    from cpt_deploy.bundle.runtime.sessions import open_session

    return open_session(network.original).run(None, {INPUT_NAME: images})[0]


@dataclass(frozen=True)
class _Step:
    """One operator: the layer or the function that computes it, what it reads and what it makes."""

    kind: str
    layer: str | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    shape: Shape | None


class OnnxModule(nn.Module):
    """Calls the operators of a network in their order.

    Layers are modules, named after their weights in the file if these end in ".weight", otherwise after their node.

    Args:
        network: A network from "image" to "logits".

    Raises:
        ConversionError: If an operator has no PyTorch form.
    """

    def __init__(self, network: OnnxNetwork) -> None:
        super().__init__()
        self._steps: list[_Step] = []
        self._constants: dict[str, Any] = {}
        self._buffers_of: dict[str, str] = {}
        for node in network.nodes:
            self._add(node, network)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of images."""
        values: dict[str, Any] = {INPUT_NAME: image, "": None, **self._constants}
        values |= {name: self.get_buffer(buffer) for name, buffer in self._buffers_of.items()}
        for step in self._steps:
            inputs = [values[name] for name in step.inputs]
            if step.layer is not None:
                results: Any = self.get_submodule(step.layer)(inputs[0])
            else:
                results = FUNCTIONS[step.kind](Call(inputs, step.attributes, len(step.outputs), step.shape))
            made = results if isinstance(results, tuple) else (results,)
            values.update(zip(step.outputs, made, strict=False))
        logits: Tensor = values[OUTPUT_NAME]
        return logits

    def replace_head(self, classes: int) -> None:
        """Replace the layer that computes the logits by one for other classes, with random weights.

        Raises:
            ConversionError: If another operator computes them.
        """
        last = self._steps[-1]
        layer = None if last.layer is None else self.get_submodule(last.layer)
        if not isinstance(layer, nn.Linear):
            raise ConversionError(f"Expected a fully connected last layer to replace, but got {last.kind}")
        assert last.layer is not None
        self.set_submodule(last.layer, nn.Linear(layer.in_features, classes, layer.bias is not None))

    def _add(self, node: onnx.NodeProto, network: OnnxNetwork) -> None:
        attributes = attributes_of(node)
        arrays = [network.array(name) if name else None for name in node.input]
        make = LAYERS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        shape = network.shape(node.input[0]) if node.input else None
        layer = None if make is None else make(arrays, attributes, shape)
        if layer is None and (node.domain not in ("", "ai.onnx") or node.op_type not in FUNCTIONS):
            hint = f"it can be exported without training: cpt export --from {network.name}"
            raise ConversionError(
                f"Expected operators that PyTorch has, but got {node.op_type} in node {node.name or node.output[0]!r}",
                hint=hint,
            )
        name = None
        inputs = tuple(node.input)
        if layer is not None:
            name = self._free_name(node)
            self.add_module(name, layer)
            inputs = inputs[:1]
        for used in inputs:
            array = network.array(used) if used else None
            if array is None or used in self._buffers_of:
                continue
            if array.dtype.kind in "fb" and array.size > 1:
                self._buffers_of[used] = f"constant_{len(self._buffers_of)}"
                self.register_buffer(self._buffers_of[used], torch.from_numpy(array.copy()), persistent=True)
            else:  # sizes, axes and numbers are Python's, so that shapes do not depend on tensors
                self._constants[used] = array.item() if array.dtype.kind == "f" else array.tolist()
        self._steps.append(_Step(node.op_type, name, inputs, tuple(node.output), attributes, shape))

    def _free_name(self, node: onnx.NodeProto) -> str:
        given = next((name.removesuffix(".weight") for name in node.input[1:2] if name.endswith(".weight")), "")
        name = wanted = _UNFIT.sub("_", given or node.name or node.output[0]).strip("_") or node.op_type
        number = 1
        while hasattr(self, name):
            number += 1
            name = f"{wanted}_{number}"
        return name
