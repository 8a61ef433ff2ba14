"""Variants for `training_cpu.py` and `training_gpu.py`: other quantizers in the same networks, and Transformers."""

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)
from torch.nn import functional

from cpt_deploy.quantization.kernels import active, kernels_on
from cpt_deploy.quantization.modules.activation_quantizer import ActivationQuantizer
from cpt_deploy.quantization.modules.layers import QuantizedLinear, quantized_layer
from cpt_deploy.quantization.state.precision_state import PrecisionState
from cpt_deploy.quantization.training_step.fused_layers import layer_output
from cpt_deploy.quantization.training_step.fused_operations import Engine, QuantizedValues, encode
from cpt_deploy.quantization.training_step.products import choose_compute, has_bf16_units

LAYERS = (nn.Conv2d, nn.Linear)


def paths_on(device: torch.device) -> tuple[Literal["modules", "float32", "bf16"], ...]:
    """Return the values of `compute` that differ on a device; float32 backward is for processors without bfloat16."""
    if device.type != "cpu":
        return ("modules", "bf16") if active(device.type).native else ("modules",)
    return ("modules", "float32", "bf16") if has_bf16_units(device.type) else ("modules", "float32")


class _Wrapped(nn.Module):
    """A layer with functions applied to its input, weight and output gradient."""

    def __init__(self, layer: nn.Module, on_input: Any, on_weight: Any, on_output: Any) -> None:
        super().__init__()
        self.layer, self.on_input, self.on_weight, self.on_output = layer, on_input, on_weight, on_output

    def forward(self, x: Tensor) -> Tensor:
        """Compute the layer on the transformed operands."""
        x, weight, layer = self.on_input(x), self.on_weight(self.layer.weight), self.layer
        if isinstance(layer, nn.Linear):
            return self.on_output(functional.linear(x, weight, layer.bias))
        return self.on_output(
            functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        )


def _wrap(network: nn.Module, make: Any) -> nn.Module:
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, LAYERS):
            network.set_submodule(name, make(module))
    return network


def fake_quantized(network: nn.Module) -> nn.Module:
    """Add torch's own fake-quantize modules to the inputs and weights of all layers; gradients stay float32."""

    def make(layer: nn.Module) -> nn.Module:
        return _Wrapped(
            layer,
            FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8),
            FakeQuantize(
                MovingAveragePerChannelMinMaxObserver,
                quant_min=-127,
                quant_max=127,
                dtype=torch.qint8,
                qscheme=torch.per_channel_symmetric,
            ),
            nn.Identity(),
        )

    return _wrap(network, make)


def like_the_authors(network: nn.Module, bits: int) -> nn.Module:
    """Quantize like the paper's published code, in its operations: `quantization.scheme=sbm` has faster ones."""
    return _wrap(
        network,
        lambda layer: _Wrapped(
            layer,
            lambda x: _StraightThrough.apply(x, bits, False),
            lambda weight: _StraightThrough.apply(weight, bits, True),
            _NoisyGradient.apply,
        ),
    )


def _on_real_grid(x: Tensor, bits: int, *, channels: bool, noise: bool) -> Tensor:
    rows = x.flatten(1)
    low, high = rows.min(-1)[0], rows.max(-1)[0]
    shape = (-1, *[1] * (x.dim() - 1))
    low, high = (low.view(shape), high.view(shape)) if channels else (low.min(), high.max())
    most = 2.0**bits - 1
    scale = torch.max((high - low) / most, torch.tensor(1e-8).to(x.device))  # copied each time, as in the authors' code
    output = (x.clone() - low).div_(scale)
    if noise:
        output.add_(output.new(output.shape).uniform_(-0.5, 0.5))
    return output.clamp_(0.0, most).round_().mul_(scale).add_(low)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, channels: bool) -> Tensor:
        return _on_real_grid(x, bits, channels=channels, noise=False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return grad_outputs[0], None, None


class _NoisyGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _on_real_grid(grad_outputs[0], 8, channels=False, noise=True)


class TransformerBlock(nn.Module):
    """A pre-norm encoder block whose Linear layers can be quantized.

    Args:
        width: Features of a token.
        hidden: Features inside the feed-forward part.
        heads: Attention heads.
        causal: Whether tokens attend only to earlier ones.
    """

    def __init__(self, width: int, hidden: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.quantizers: nn.ModuleList | None = None
        self.engine: Engine | None = None

    def quantize(self, bits: int, compute: Literal["modules", "float32", "bf16"]) -> None:
        """Replace the Linear layers by quantized ones, with activation quantizers in front of them."""
        precision = PrecisionState(8, 0)
        self.quantizers = nn.ModuleList(ActivationQuantizer(precision, "scheduled", 0.1) for _ in range(4))
        for index, name in enumerate(("query", "key", "value", "out", "up", "down")):
            setattr(self, name, quantized_layer(getattr(self, name), precision, "scheduled", index))
        precision.set(weights=bits, activations=bits, gradients=8)
        device = self.up.weight.device
        self.quantizers.to(device)
        precision.to(device)
        if choose_compute(compute, native=True, device=device.type) != "modules":
            dtype = torch.bfloat16 if compute == "bf16" else torch.float32
            self.engine = Engine(kernels_on(device), dtype, replayable=device.type == "cuda")

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, length, width) to the mean of the block's output, (N, width)."""
        return self.tokens(x).mean(dim=1)

    def tokens(self, x: Tensor) -> Tensor:
        """Map tokens (N, length, width) to tokens of the same shape."""
        read = self._read(0, self.norm1(x))
        parts = [self._linear(layer, read) for layer in (self.query, self.key, self.value)]
        heads = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts]
        attended = functional.scaled_dot_product_attention(*heads, is_causal=self.causal).transpose(1, 2).flatten(2)
        x = x + self._linear(self.out, self._read(1, attended))
        hidden = self._linear(self.up, self._read(2, self.norm2(x)))
        return x + self._linear(self.down, self._read(3, functional.gelu(hidden)))

    def _read(self, index: int, x: Tensor) -> Tensor | QuantizedValues:
        """Quantize the input of a layer, if layers are quantized."""
        if self.quantizers is None:
            return x
        quantizer, x = self.quantizers[index], x.float()  # under autocast attention is in bfloat16
        if self.engine is None:
            return quantizer(x)
        quantizer.take(*self.engine.kernels.range(x.detach()), self.engine.kernels)
        return encode(x, quantizer.qparams(), self.engine)

    def _linear(self, layer: nn.Module, x: Any) -> Tensor:
        if self.engine is None:
            return layer(x)
        assert isinstance(layer, QuantizedLinear)
        return layer_output(layer, x, self.engine)


class Gpt(nn.Module):
    """A GPT-like network: embeddings, causal blocks, and logits with the weights of the embedding.

    Args:
        vocabulary: Number of tokens.
        length: Maximum length of a sequence.
        blocks: Number of blocks.
        width: Features of a token; the feed-forward part has four times as many.
        heads: Attention heads.
    """

    def __init__(self, vocabulary: int, length: int, blocks: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, 4 * width, heads, causal=True) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def quantize(self, bits: int, compute: Literal["modules", "float32", "bf16"]) -> None:
        """Quantize the Linear layers of all blocks; embeddings and logits stay in floating point."""
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            block.quantize(bits, compute)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens, int64 (N, length), to logits (N, length, vocabulary)."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            x = block.tokens(x)
        return functional.linear(self.norm(x), self.embedding.weight)
