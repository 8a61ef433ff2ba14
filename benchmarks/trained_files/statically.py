"""Quantize with `onnxruntime.quantization.quantize_static`, at settings that suit the processor."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Sample = dict[str, NDArray[Any]]
OPSET = 17
"""Opset of older files: before 13 there are no quantizers per channel."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.rest: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self.rest, None)


def static_file(source: Path, samples: Sequence[Sample], *, reduce_range: bool) -> tuple[bytes, str]:
    """Return a quantized file, QDQ, per channel, uint8 activations, and how it was prepared, in words.

    Args:
        source: The float file.
        samples: Calibration samples.
        reduce_range: Whether weights have 7 bits, with which no sum saturates on processors without VNNI.
    """
    errors = []
    for shared in (True, False):
        try:
            content = _quantized(source, samples, reduce_range=reduce_range, shared=shared)
            onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's scripts and of its C++ library
            errors.append(str(error).partition("\n")[0])
        else:
            return content, "" if shared else "layers of shared biases in float"
    raise RuntimeError(f"Expected quantize_static to quantize {source.name}, but got: {'; '.join(errors)}")


def _quantized(source: Path, samples: Sequence[Sample], *, reduce_range: bool, shared: bool) -> bytes:
    model = onnx.load(source)
    if next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")) < OPSET - 4:
        model.ir_version = max(model.ir_version, 7)
        model = onnx.version_converter.convert_version(model, OPSET)
    with tempfile.TemporaryDirectory() as folder:
        path, ready, made = (Path(folder) / f"{name}.onnx" for name in ("model", "prepared", "quantized"))
        onnx.save(model, path)
        # shapes of these files cannot all be inferred in symbols
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantize_static(
            str(ready),
            str(made),
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            nodes_to_exclude=[] if shared else _of_shared_bias(onnx.load(ready)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return made.read_bytes()


def _of_shared_bias(model: onnx.ModelProto) -> list[str]:
    """Return the layers whose bias others have, too: quantize_static mixes up their names."""
    biases = Counter(node.input[2] for node in model.graph.node if node.op_type == "Conv" and len(node.input) > 2)
    return [node.name for node in model.graph.node if len(node.input) > 2 and biases[node.input[2]] > 1]
