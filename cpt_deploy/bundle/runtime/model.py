"""Run a bundle's classifier in onnxruntime, trace its integers, and check it against the golden sample."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cpt_deploy.bundle.golden import Golden, GoldenCheck, compare_golden
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import BundleError, MissingExtraError
from cpt_deploy.signature import INPUT_NAME, OUTPUT_NAME


class OnnxRuntimeModel:
    """An exported classifier in onnxruntime. `run` may be called from several threads at once.

    Args:
        model: Path of an ONNX file, or its bytes.
        threads: Number of threads per call; `None` is one per physical core.
        optimize: Whether onnxruntime may fuse the graph to integer operators, which makes it fast.
        provider: "cpu", "cuda", "tensorrt", or the name of one of onnxruntime's execution providers.
        intermediates: Whether `trace` also returns the intermediate outputs as integers (needs the `onnx` package).
        rest_between_runs: Whether its threads stop at once after a call instead of busy-waiting for the next one, so
            that several models can be timed in alternation.

    Raises:
        BundleError: If onnxruntime cannot load the file, or its input is not "image" or its output not "logits".
        UsageError: If the provider does not exist or `threads` is less than 1.
        MissingExtraError: If the installed onnxruntime lacks the provider or cannot start it, or `intermediates` is set
            and `onnx` is not installed.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int | None = 1,
        optimize: bool = True,
        provider: str = "cpu",
        intermediates: bool = False,
        rest_between_runs: bool = False,
    ) -> None:
        where = "the given bytes" if isinstance(model, bytes) else str(model)
        self._session: Any = open_session(
            _with_intermediates(model if isinstance(model, bytes) else str(model)) if intermediates else model,
            where=where,
            threads=threads,
            optimize=optimize,
            provider=provider,
            rest_between_runs=rest_between_runs,
        )
        self.input_shape: tuple[int, int, int] = _checked_input_shape(self._session, where)
        self.intermediate_names: tuple[str, ...] = tuple(
            output.name for output in self._session.get_outputs() if output.name != OUTPUT_NAME
        )

    @property
    def providers(self) -> list[str]:
        """The execution providers in use, in order of priority."""
        providers: list[str] = self._session.get_providers()
        return providers

    def run(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Compute the logits of a batch.

        Args:
            inputs: Normalised images, float32 (N, C, H, W).

        Returns:
            Logits, float32 (N, K).

        Raises:
            ValueError: If the dtype or the shape differs.
        """
        logits: npt.NDArray[np.float32] = self._session.run([OUTPUT_NAME], {INPUT_NAME: self._checked(inputs)})[0]
        return logits

    def trace(self, inputs: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Compute a batch; return the logits and every integer intermediate output by its name in the ONNX graph.

        Args:
            inputs: Normalised images, as for `run`.

        Raises:
            ValueError: If the dtype or the shape differs.
        """
        names = [OUTPUT_NAME, *self.intermediate_names]
        return dict(zip(names, self._session.run(names, {INPUT_NAME: self._checked(inputs)}), strict=True))

    def reproduce_golden(self, golden: Golden) -> GoldenCheck:
        """Compute a golden sample and compare the logits; see `GoldenCheck.reproduced`.

        Raises:
            BundleError: If the sample belongs to another model.
        """
        try:
            return compare_golden(golden, self.run(golden.inputs))
        except ValueError as error:
            raise BundleError(f"Expected the golden sample to fit the model, but got: {error}") from error

    def _checked(self, inputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if inputs.dtype != np.float32 or inputs.ndim != 4 or inputs.shape[1:] != self.input_shape:
            raise ValueError(
                f"Expected inputs to be float32 (N, {', '.join(map(str, self.input_shape))}), "
                f"but got {inputs.dtype} {inputs.shape}"
            )
        return inputs


def _checked_input_shape(session: Any, where: str) -> tuple[int, int, int]:
    """Check that a session has the input and the output of a bundle, and return (C, H, W) of the input."""
    inputs, outputs = session.get_inputs(), [output.name for output in session.get_outputs()]
    if [tensor.name for tensor in inputs] != [INPUT_NAME] or OUTPUT_NAME not in outputs:
        raise BundleError(
            f"Expected a model with the input {INPUT_NAME!r} and the output {OUTPUT_NAME!r}, but {where} has "
            f"{[tensor.name for tensor in inputs]} and {outputs[:5]}"
        )
    kind, shape = inputs[0].type, inputs[0].shape
    if kind != "tensor(float)" or len(shape) != 4 or not all(isinstance(size, int) for size in shape[1:]):
        raise BundleError(f"Expected a float32 input of a fixed (C, H, W), but {where} takes {kind} {shape}")
    channels, height, width = shape[1:]
    return channels, height, width


def _with_intermediates(source: str | bytes) -> bytes:
    """Return the model with the integers of every activation quantizer as additional outputs.

    onnxruntime still fuses everything: the integers between two operators also exist in the fused graph.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Expected the package onnx, but it is not installed", hint="pip install 'cpt-deploy[train]'"
        ) from error
    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
    except Exception as error:  # protobuf's DecodeError, or any other error of its parser
        raise BundleError(f"Expected an ONNX model, but got: {error}") from error
    types = {entry.name: entry.data_type for entry in model.graph.initializer}
    clipped = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "Clip"}
    present = {output.name for output in model.graph.output}
    for node in list(model.graph.node):
        if node.op_type != "QuantizeLinear":
            continue
        # Below 8 bits, a Clip in the integer domain gives the quantized values.
        name = clipped.get(node.output[0], node.output[0])
        if name not in present:
            present.add(name)
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, types[node.input[2]], None))
    serialized: bytes = model.SerializeToString()
    return serialized
