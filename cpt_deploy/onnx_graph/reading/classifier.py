"""Read an ONNX file as an image classifier: from normalised images (N, C, H, W) to logits (N, classes)."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import BundleError, ConversionError
from cpt_deploy.onnx_graph.onnx_parts import renamed
from cpt_deploy.onnx_graph.reading.batches import fixed_batch, with_free_batch
from cpt_deploy.onnx_graph.reading.loading import parsed, read_onnx
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork, Shape, attributes_of, is_standard, sizes_of
from cpt_deploy.onnx_graph.reading.simplify import simplify
from cpt_deploy.signature import BATCH, INPUT_NAME, OUTPUT_NAME

_CHANNELS = (1, 3)
#: Allowed difference of the outputs from the file's, relative to the largest: float32 summation order.
_TOLERANCE = 1e-3
#: Number of images for which sizes that are computed of a free batch become constants, before it is free again.
_FOLDED = 7
_OTHERWISE = "give a file with values of its inputs instead: --data inputs.npz"


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """An ONNX file of an image classifier.

    Attributes:
        model: Its content, with external data loaded.
        name: Name of the file.
        input_shape: Channels, height and width of its images; None for a free dimension.
        classes: Number of logits; None if it is free.
        channels_last: Whether its images are (N, H, W, C).
    """

    model: onnx.ModelProto
    name: str
    input_shape: tuple[int | None, int | None, int | None]
    classes: int | None
    channels_last: bool

    @classmethod
    def read(cls, path: Path) -> "ImageClassifier":
        """Read a file and check that it maps images to logits.

        Raises:
            DataError: If it is missing, damaged or not an ONNX file.
            ConversionError: If its input is not a batch of images or its output not a batch of logits.
        """
        model, name = parsed(path), path.name
        constants = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in constants]
        outputs = list(model.graph.output)
        if len(inputs) != 1 or len(outputs) != 1:
            listed = ", ".join(value.name for value in (inputs if len(inputs) != 1 else outputs)[:4])
            what = f"one input, the images, but {name} has {len(inputs)}"
            what = what if len(inputs) != 1 else f"one output, the logits, but {name} has {len(outputs)}"
            raise ConversionError(f"Expected a classifier with {what} ({listed})", hint=_OTHERWISE)
        kind = inputs[0].type.tensor_type
        sizes, element = sizes_of(kind), TensorProto.DataType.Name(kind.elem_type).lower()
        last = len(sizes) == 4 and sizes[1] not in _CHANNELS and sizes[3] in _CHANNELS
        channels, height, width = (sizes[3], *sizes[1:3]) if last else sizes[1:] if len(sizes) == 4 else (0, 0, 0)
        if kind.elem_type != TensorProto.FLOAT or channels not in (None, *_CHANNELS):
            raise ConversionError(
                f"Expected images with 1 or 3 channels, float (N, C, H, W) or (N, H, W, C), as the input of {name}, "
                f"but got {element} ({_listed(sizes)})",
                hint=_OTHERWISE,
            )
        logits = sizes_of(outputs[0].type.tensor_type)
        if outputs[0].type.tensor_type.HasField("shape") and len(logits) != 2:
            raise ConversionError(
                f"Expected logits (N, classes) as the output of {name}, but got ({_listed(logits)})", hint=_OTHERWISE
            )
        return cls(model, name, (channels, height, width), logits[1] if logits else None, last)

    def network(self, input_shape: tuple[int, int, int], classes: int) -> OnnxNetwork:
        """Return the network for images of one size: from "image", float32 (N, C, H, W), to "logits", (N, classes).

        A Softmax or LogSoftmax at the end is left out, a fixed batch becomes free, and images come with channels first.
        The result is compared with the file in onnxruntime.

        Args:
            input_shape: Channels, height and width.
            classes: Number of classes of the data.

        Raises:
            ConversionError: If onnxruntime cannot run the file on such images, the number of classes differs, or the
                network computes something else than the file.
        """
        if self.classes is not None and self.classes != classes:
            raise ConversionError(
                f"Expected a model with {classes} classes, as the data has, but {self.name} has {self.classes}",
                hint="name the data set that the model was trained for",
            )
        file = self._of_size(input_shape)
        read = read_onnx(file.SerializeToString(), self.name)
        if not fixed_batch(read) and any(is_standard(node, "Shape") for node in read.nodes):
            with suppress(ConversionError):  # where sizes do not follow from the batch alone, they stay computed
                folded = self._of_size(input_shape, _FOLDED)
                return self._checked(folded, read_onnx(folded.SerializeToString(), self.name), input_shape, classes)
        return self._checked(file, read, input_shape, classes)

    def _checked(
        self, file: onnx.ModelProto, read: OnnxNetwork, input_shape: tuple[int, int, int], classes: int
    ) -> OnnxNetwork:
        """Return the network that was read of a file for one size, with a free batch, after comparing both."""
        batch = fixed_batch(read)
        network, probabilities = self._named(read, input_shape)
        network = with_free_batch(network) if batch else network
        self._check(file, network, (batch or 1, *input_shape), classes, probabilities)
        return network

    def _of_size(self, input_shape: tuple[int, int, int], batch: int | None = None) -> onnx.ModelProto:
        """Return the file for images of one size, and for a number of them."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        constants = {tensor.name for tensor in model.graph.initializer}
        (image,) = (value for value in model.graph.input if value.name not in constants)
        sizes = (*input_shape[1:], input_shape[0]) if self.channels_last else input_shape
        for place, size in enumerate(sizes, 1):
            image.type.tensor_type.shape.dim[place].dim_value = size
        if batch is not None:
            image.type.tensor_type.shape.dim[0].dim_value = batch
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]  # of other sizes
        return model

    def _named(self, network: OnnxNetwork, input_shape: tuple[int, int, int]) -> tuple[OnnxNetwork, str | None]:
        """Return the network from "image" to "logits", and the type of a final operator of probabilities."""
        model = network.to_model()
        graph = model.graph
        (image,), (output,) = graph.input, graph.output
        batch = network.shape(image.name)
        last = next((node for node in graph.node if output.name in node.output), None)
        if last is None:
            raise ConversionError(f"Expected {self.name} to compute its output, but it is an input or a constant")
        axis = attributes_of(last).get("axis", -1)
        probabilities = last.op_type if is_standard(last, "Softmax", "LogSoftmax") and axis in (1, -1) else None
        if probabilities is not None:
            graph.node.remove(last)
        made = last.input[0] if probabilities is not None else output.name
        names = {made: OUTPUT_NAME} | ({} if self.channels_last else {image.name: INPUT_NAME})
        clashes = {name for node in graph.node for name in (*node.input, *node.output)} & {INPUT_NAME, OUTPUT_NAME}
        names = {name: f"{name}_of_the_file" for name in clashes} | names
        nodes = []
        for node in graph.node:
            copy = renamed(node, names)
            copy.output[:] = [names.get(name, name) for name in node.output]
            nodes.append(copy)
        if self.channels_last:
            source = names.get(image.name, image.name)
            nodes.insert(0, helper.make_node("Transpose", [INPUT_NAME], [source], perm=[0, 2, 3, 1]))
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        size = (batch[0] if batch else None) or BATCH
        ends = [(INPUT_NAME, (size, *input_shape)), (OUTPUT_NAME, (size, self.classes))]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ends]
        body = helper.make_graph(nodes, "classifier", values[:1], values[1:], list(graph.initializer))
        built = OnnxNetwork.from_model(simplify(network.model_of(body)), name=self.name)
        return replace(built, original=built.to_model().SerializeToString()), probabilities

    def _check(
        self,
        file: onnx.ModelProto,
        network: OnnxNetwork,
        shape: tuple[int, int, int, int],
        classes: int,
        probabilities: str | None,
    ) -> None:
        """Compare the network with the file on random images, two batches of the file in one batch."""
        images = np.random.default_rng(0).normal(size=(2 * shape[0], *shape[1:])).astype(np.float32)
        expected = np.concatenate(list(self._of_file(file, images, shape[0])))
        try:
            session = open_session(network.original, where=self.name)
            (got,) = session.run(None, {INPUT_NAME: images})
        except Exception as error:  # of onnxruntime, which have no common base class
            raise ConversionError(
                f"Expected {self.name} to run on any number of images, but got: {_first_line(error)}",
                hint="write the file with a free batch dimension",
            ) from error
        if got.shape != expected.shape:
            raise ConversionError(
                f"Expected {self.name} to give {expected.shape} for {len(images)} images in any batches, but got "
                f"{got.shape} for one batch",
                hint="write the file with a free batch dimension",
            )
        if got.shape != (len(images), classes):
            raise ConversionError(
                f"Expected {self.name} to give {classes} logits per image, but it gives {got.shape[1:]}"
            )
        if probabilities is not None:
            shifted = got - got.max(axis=1, keepdims=True)
            got = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
            got = np.exp(got) if probabilities == "Softmax" else got
        if not np.abs(got - expected).max() <= _TOLERANCE * max(float(np.abs(expected).max()), 1e-6):
            raise ConversionError(
                f"Expected {self.name} to compute each image by itself, but its results differ in another batch",
                hint="write the file with a free batch dimension",
            )

    def _of_file(self, file: onnx.ModelProto, images: NDArray[np.float32], batch: int) -> Iterator[NDArray[Any]]:
        """Yield what the file itself computes of images, a batch at a time."""
        try:
            session = open_session(file.SerializeToString(), where=self.name)
            for start in range(0, len(images), batch):
                part = images[start : start + batch]
                given = part.transpose(0, 2, 3, 1) if self.channels_last else part
                yield session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(given)})[0]
        except BundleError:
            raise
        except Exception as error:  # of onnxruntime, which have no common base class
            size = " x ".join(map(str, images.shape[1:]))
            raise ConversionError(
                f"Expected a model that onnxruntime runs on images of {size} (channels x height x width), but got: "
                f"{_first_line(error)}"
            ) from error


def _listed(sizes: Shape) -> str:
    return ", ".join("?" if size is None else str(size) for size in sizes)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
