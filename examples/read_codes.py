"""Read every layer's weights from a bundle with NumPy alone: `python examples/read_codes.py my-bundle`."""

import json
import sys
from pathlib import Path

import numpy as np

TYPES = {"I8": np.int8, "U8": np.uint8, "I32": np.int32, "F32": np.float32}


def read_weights(bundle: Path) -> dict[str, np.ndarray]:
    """Return the real weights of each layer, float32 (output channels, ...), by the name of its output."""
    data = (bundle / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")  # safetensors: length of the JSON header, the header, the arrays
    arrays, weights = {}, {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, end = (start + offset for offset in entry["data_offsets"])
            arrays[name] = np.frombuffer(data[first:end], TYPES[entry["dtype"]]).reshape(entry["shape"])
    for layer in json.loads((bundle / "quantization.json").read_text("utf-8"))["graph"]["operations"]:
        if "codes" in layer:  # other operations have no weights
            codes, scales = arrays[layer["codes"]["tensor"]], arrays[layer["scales"]["tensor"]]
            step = scales * np.float32(2 ** layer["shift"])
            weights[layer["output"]] = codes * step.reshape(-1, *[1] * (codes.ndim - 1))
    return weights


for name, weight in read_weights(Path(sys.argv[1])).items() if __name__ == "__main__" else ():
    print(f"{name}: {weight.shape}, {len(np.unique(weight))} values from {weight.min():.4g} to {weight.max():.4g}")
