"""NNCF's post-training quantization of the float ONNX file."""

import nncf
import onnx
from network import FLOAT, FOLDER, batches

dataset = nncf.Dataset([{"image": batch} for batch in batches()])
onnx.save(nncf.quantize(onnx.load(FLOAT), dataset), FOLDER / "nncf.onnx")
