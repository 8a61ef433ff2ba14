"""AMD Quark's quantization of the float ONNX file, for processors (A8W8) and for NPUs (XINT8)."""

import numpy as np
import numpy.typing as npt
from network import FLOAT, FOLDER, batches
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import Config, get_default_config


class Reader(CalibrationDataReader):
    """Feeds the calibration images."""

    def __init__(self) -> None:
        self._batches = batches()

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """Return the next call's inputs."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


for name in ("A8W8", "XINT8"):
    config = Config(global_quant_config=get_default_config(name))
    ModelQuantizer(config).quantize_model(str(FLOAT), str(FOLDER / f"quark-{name.lower()}.onnx"), Reader())
