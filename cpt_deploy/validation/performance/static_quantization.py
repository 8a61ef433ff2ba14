"""Quantize a float model by onnxruntime's own static quantization, the baseline for an integer export.

Needs the `onnx` package.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cpt_deploy.bundle.runtime.operators import require_onnx
from cpt_deploy.validation.accuracy.samples import Arrays


def static_quantization(float_model: bytes, calibration: Sequence[Arrays]) -> bytes:
    """Quantize a float32 ONNX model as onnxruntime's documentation advises: QDQ, uint8 activations, int8 weights.

    Args:
        float_model: The serialized model.
        calibration: Batches of its inputs by name, (N, ...) each.

    Returns:
        The serialized quantized model.

    Raises:
        MissingExtraError: If `onnx` is not installed.
    """
    require_onnx()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self._batches = iter(calibration)

        def get_next(self) -> Arrays | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory(prefix="cpt-static-") as folder, _quiet():
        plain, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "static"))
        plain.write_bytes(float_model)
        quant_pre_process(plain, prepared)
        quantize_static(
            prepared,
            quantized,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return quantized.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantizer's messages on single nodes, which it writes to the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
