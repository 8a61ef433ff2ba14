"""Read a float classifier from an ONNX file: its input and output, and its network as a PyTorch module."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import nn

from cpt_deploy.errors import ConversionError, DataError
from cpt_deploy.models.imported.onnx_graph import OnnxGraph, graph_inputs, simplify
from cpt_deploy.models.imported.onnx_module import build_module

_IMAGE_CHANNELS = (1, 3)
#: Allowed difference between the module's logits and onnxruntime's, relative to the largest: float32 summation order.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class OnnxSource:
    """An ONNX file.

    Args:
        model: Its content, with external data loaded.
        architecture: Name of the file without its suffix; graph names are rarely meaningful.
        input_shape: Channels, height and width of its images; None for a free dimension.
        classes: Number of logits; None if it is free.
        file: Name of the file, for messages.
    """

    model: onnx.ModelProto
    architecture: str
    input_shape: tuple[int | None, int | None, int | None]
    classes: int | None
    file: str

    @classmethod
    def read(cls, path: Path) -> "OnnxSource":
        """Read a file and check that it maps images to logits.

        Raises:
            DataError: If it is damaged or not an ONNX file.
            ConversionError: If its input is not a batch of images or its output not a batch of logits.
        """
        try:
            model = onnx.load(path)
        except Exception as error:  # protobuf's DecodeError, or any error of missing external data
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"Expected an ONNX model in {path}, but it is damaged or of another kind: {reason}"
            ) from error
        if not model.graph.node:
            raise DataError(f"Expected an ONNX model in {path}, but it has no operators")
        input_shape = _image_shape(model, path.name)
        return cls(model, path.stem, input_shape, _classes(model, path.name), path.name)

    def build(self, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        """Return the network as a module, and check that it computes the same as onnxruntime.

        Raises:
            ConversionError: If an operator has no integer form (named with its node), the number of classes differs,
                or the module computes different results.
        """
        if self.classes is not None and self.classes != classes:
            raise ConversionError(
                f"Expected a model with {classes} classes, as the data has, but {self.file} has {self.classes}",
                hint="name the data set that the model was trained for",
            )
        simplified = simplify(self.model, input_shape)
        module = build_module(simplified).eval()
        self._check(module, input_shape, simplified, classes)
        return module

    def _check(self, module: nn.Module, input_shape: tuple[int, int, int], graph: OnnxGraph, classes: int) -> None:
        inputs = np.random.default_rng(0).normal(size=(graph.batch, *input_shape)).astype(np.float32)
        expected = _run(self.model, inputs)
        with torch.no_grad():
            got = module(torch.from_numpy(inputs)).numpy()
        if got.shape != (graph.batch, classes):
            raise ConversionError(
                f"Expected {self.file} to give {classes} logits per image, but it gives {got.shape[1:]}"
            )
        if graph.softmax is not None:
            got = torch.from_numpy(got).softmax(1).numpy()
            expected = np.exp(expected) if graph.softmax == "LogSoftmax" else expected
        difference = float(np.abs(got - expected).max())
        if not difference <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-6):
            raise ConversionError(
                f"Expected {self.file} to give the same outputs in PyTorch and onnxruntime, but they differ by "
                f"{difference:.3g}"
            )


def _run(model: onnx.ModelProto, inputs: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def _image_shape(model: onnx.ModelProto, file: str) -> tuple[int | None, int | None, int | None]:
    inputs = graph_inputs(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise ConversionError(f"Expected a model with one input, the images, but {file} has {len(inputs)} ({names})")
    kind, sizes = inputs[0].type.tensor_type.elem_type, _sizes(inputs[0])
    if kind != TensorProto.FLOAT or len(sizes) != 4:
        described = f"{TensorProto.DataType.Name(kind).lower()} ({_listed(sizes)})"
        raise ConversionError(
            f"Expected images, float (N, channels, height, width), as the input of {file}, but got {described}",
            hint="only image classifiers in float32 can be imported",
        )
    channels, height, width = sizes[1:]
    if channels is not None and channels not in _IMAGE_CHANNELS:
        raise ConversionError(
            f"Expected 1 or 3 channels as the second dimension of the input of {file}, but got ({_listed(sizes)})",
            hint="if the channels come last, export the model again with channels first",
        )
    return channels, height, width


def _classes(model: onnx.ModelProto, file: str) -> int | None:
    outputs = model.graph.output
    if len(outputs) != 1:
        names = ", ".join(value.name for value in outputs[:4])
        raise ConversionError(
            f"Expected a classifier with one output, the logits, but {file} has {len(outputs)} ({names})",
            hint="only image classifiers can be imported",
        )
    sizes = _sizes(outputs[0])
    if outputs[0].type.tensor_type.HasField("shape") and len(sizes) != 2:
        raise ConversionError(
            f"Expected logits of shape (N, classes) as the output of {file}, but got ({_listed(sizes)})",
            hint="only image classifiers can be imported",
        )
    return sizes[1] if sizes else None


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    """Return the dimensions of a tensor, None for a free dimension."""
    return [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]


def _listed(sizes: list[int | None]) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes)
