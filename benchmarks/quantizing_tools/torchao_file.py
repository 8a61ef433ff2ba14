"""torchao's PT2E quantization for x86, written by `torch.onnx`."""

import torch
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from network import batches, exported, to_onnx
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
prepared = prepare_pt2e(exported(), quantizer)
for batch in batches():
    prepared(torch.from_numpy(batch))
to_onnx(convert_pt2e(prepared), "torchao.onnx")
