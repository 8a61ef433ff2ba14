"""Intel Neural Compressor's static quantization of an exported network, written by `torch.onnx`."""

import torch
from network import batches, images, network, to_onnx
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import StaticQuantConfig, convert, prepare

example = (torch.from_numpy(images()[:2]),)
captured = export(network(), example, dynamic_shapes=({0: torch.export.Dim("N")},))
prepared = prepare(captured, StaticQuantConfig())
for batch in batches():
    prepared(torch.from_numpy(batch))
to_onnx(convert(prepared), "neural-compressor.onnx")
