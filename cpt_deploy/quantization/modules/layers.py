"""Layers with quantized weights and gradients; activation quantizers in the graph quantize their inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cpt_deploy.quantization.modules.gradients import with_quantized_gradient
from cpt_deploy.quantization.modules.sbm import fake_quantize_channels
from cpt_deploy.quantization.modules.strided import seen_pixels, skips_pixels
from cpt_deploy.quantization.numerics.accumulator_range import can_overflow, summed_quant_max
from cpt_deploy.quantization.numerics.affine import fake_quantize_weight
from cpt_deploy.quantization.numerics.saturation import portable_quant_max
from cpt_deploy.quantization.state.config import Scheme
from cpt_deploy.quantization.state.precision_state import PrecisionGroup, PrecisionState


class QuantizedLayer(nn.Module):
    """Base class of quantized layers: a weight quantized symmetrically per channel, and a quantized output gradient.

    Attributes:
        weight: The parameter, in torch's layout; None if the weight is computed by a parametrization.
        weight_of: The parametrization that computes the weight, in torch's layout; None if the weight is a parameter.
        weight_shape: Shape of the weight with output channels first, (O, ...).
        group: "scheduled", "fixed" (always max_bits) or a group's name.
        index: Position among the model's layers; seeds the gradient's stochastic-rounding noise.
        scheme: The quantizers of weight and gradient.
    """

    weight: nn.Parameter | None
    weight_of: nn.Module | None
    weight_shape: torch.Size
    bias: nn.Parameter | None
    precision: PrecisionState
    group: PrecisionGroup
    index: int
    scheme: Scheme = "integers"

    def attach(self, precision: PrecisionState, group: PrecisionGroup, index: int) -> None:
        """Connect the layer to the model's bits."""
        self.precision, self.group, self.index = precision, group, index
        precision.add_layer(index)

    def take_weight(self, module: nn.Module) -> None:
        """Share the weight of a float layer, or its parametrization, in place of the own weight of the same shape."""
        assert self.weight is not None
        self.weight_shape = self.turned(self.weight).shape
        if parametrize.is_parametrized(module):
            self.weight, self.weight_of = None, module.get_submodule("parametrizations.weight")
        else:
            self.weight, self.weight_of = module.get_parameter("weight"), None

    @property
    def float_weight(self) -> Tensor:
        """The weight in torch's layout before quantization, differentiable with respect to its parameters."""
        if self.weight_of is None:
            assert self.weight is not None
            return self.weight
        computed: Tensor = self.weight_of()
        return computed

    @property
    def channel_weight(self) -> Tensor:
        """The float weight with output channels first, (O, ...)."""
        return self.turned(self.float_weight)

    def turned(self, weight: Tensor) -> Tensor:
        """Transpose a weight from torch's layout to output channels first, or back."""
        return weight

    @property
    def quantized_weight(self) -> Tensor:
        """The fake-quantized weight in torch's layout, as the forward pass uses it at the current bits."""
        if not self.precision.quantizes_weights(self.index, self.group):
            return self.float_weight
        weight, quant_max = self.channel_weight, self.precision.weight_quant_max_of(self.index, self.group)
        if self.scheme == "sbm":
            return self.turned(fake_quantize_channels(weight, 2 * quant_max + 1))  # 2^(b−1) − 1 becomes 2^b − 1
        limited = (
            self.trained_quant_max(quant_max, weight) if self.training else self.limited_quant_max(quant_max, weight)
        )
        return self.turned(fake_quantize_weight(weight, limited))

    def trained_quant_max(self, quant_max: Tensor, weight: Tensor) -> Tensor:
        """Return the max quantized weight, 0-dim; or per channel, (O,), where sums of many inputs require a lower one.

        Args:
            quant_max: The max quantized value at these bits.
            weight: `channel_weight`.
        """
        return summed_quant_max(weight, quant_max) if can_overflow(weight[0].numel()) else quant_max

    def limited_quant_max(self, quant_max: Tensor, weight: Tensor) -> Tensor:
        """Return the same for evaluation and freezing, where also pairs are limited unless the model is native."""
        limit = self.precision.saturation_limit
        return self.trained_quant_max(
            quant_max if limit is None else portable_quant_max(weight, quant_max, limit), weight
        )

    def gradient_seed(self, y: Tensor) -> Tensor:
        """Return the seed of the stochastic-rounding noise of the gradient of the layer's output (N, ...) in this step.

        A process that has a part of the batch uses the matching part of the whole batch's noise.
        """
        return self.precision.seed_of(self.index, y.numel() // len(y))

    def _with_quantized_gradient(self, y: Tensor) -> Tensor:
        if not (self.training and self.precision.quantizes_gradients):
            return y
        return with_quantized_gradient(y, self.precision.gradient_quant_max, self.gradient_seed(y), self.scheme)


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):  # type: ignore[misc]  # torch declares the same attributes wider
    """Quantized Conv1d: input (N, C, L), output (N, O, L'); any stride, padding, dilation and groups."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the quantized weight."""
        if skips_pixels(self, x.device):
            y = functional.conv1d(seen_pixels(x, self), self.quantized_weight, self.bias, groups=self.groups)
        else:
            y = self._conv_forward(x, self.quantized_weight, self.bias)
        return self._with_quantized_gradient(y)


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]  # torch declares the same attributes wider
    """Quantized Conv2d: input (N, C, H, W), output (N, O, H', W'); any stride, padding, dilation and groups."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the quantized weight."""
        if skips_pixels(self, x.device):
            y = functional.conv2d(seen_pixels(x, self), self.quantized_weight, self.bias, groups=self.groups)
        else:
            y = self._conv_forward(x, self.quantized_weight, self.bias)
        return self._with_quantized_gradient(y)


class _TransposedConvolution(QuantizedLayer):
    """Base class of transposed convolutions, whose weight has shape (I, O / groups, ...) in torch."""

    groups: int

    def turned(self, weight: Tensor) -> Tensor:
        """Transpose (I, O/g, ...) to (O, I/g, ...), or back by the same operation; a view where possible."""
        if self.groups == 1:
            return weight.transpose(0, 1)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return grouped.transpose(1, 2).flatten(0, 1)


class QuantizedConvTranspose1d(_TransposedConvolution, nn.ConvTranspose1d):  # type: ignore[misc]
    """Quantized ConvTranspose1d: input (N, C, L), output (N, O, L'); any geometry that torch supports."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the output's size is no argument any more
        """Convolve with the quantized weight."""
        geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        y = functional.conv_transpose1d(x, self.quantized_weight, self.bias, *geometry)  # type: ignore[arg-type]
        return self._with_quantized_gradient(y)


class QuantizedConvTranspose2d(_TransposedConvolution, nn.ConvTranspose2d):  # type: ignore[misc]
    """Quantized ConvTranspose2d: input (N, C, H, W), output (N, O, H', W'); any geometry that torch supports."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # the output's size is no argument any more
        """Convolve with the quantized weight."""
        geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        y = functional.conv_transpose2d(x, self.quantized_weight, self.bias, *geometry)  # type: ignore[arg-type]
        return self._with_quantized_gradient(y)


class QuantizedLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]  # torch declares the same attributes wider
    """Quantized Linear: input (..., I), output (..., O)."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by the quantized weight."""
        return self._with_quantized_gradient(functional.linear(x, self.quantized_weight, self.bias))


class QuantizedEmbedding(QuantizedLayer, nn.Embedding):  # type: ignore[misc]  # torch declares the same wider
    """Quantized Embedding: indices of any shape, output (..., D); each row of the table has its own scale.

    A row corresponds to an output channel of a Linear, so a table shared with a decoder has the same quantized values
    in both. Rows are looked up, not multiplied: no limit of sums applies, and the cost in BitOPs is 0.
    """

    bias = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the fake-quantized rows; only those that are read are quantized."""
        rows = super().forward(input)
        if self.precision.quantizes_weights(self.index, self.group):
            quant_max = self.precision.weight_quant_max_of(self.index, self.group)
            rows = fake_quantize_weight(rows.reshape(-1, rows.shape[-1]), quant_max).view_as(rows)
        return self._with_quantized_gradient(rows)

    def limited_quant_max(self, quant_max: Tensor, weight: Tensor) -> Tensor:
        """Return the max quantized weight, which is not limited here."""
        return quant_max


#: Layers that slide a kernel over positions; with a following BatchNorm and ReLU they form one integer operation.
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d)


def _conv_arguments(conv: Any) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def _transposed_arguments(conv: Any) -> dict[str, Any]:
    return {**_conv_arguments(conv), "output_padding": conv.output_padding}


def _linear_arguments(linear: nn.Linear) -> dict[str, Any]:
    return {"in_features": linear.in_features, "out_features": linear.out_features}


def _embedding_arguments(embedding: nn.Embedding) -> dict[str, Any]:
    return {
        "num_embeddings": embedding.num_embeddings,
        "embedding_dim": embedding.embedding_dim,
        "padding_idx": embedding.padding_idx,
    }


_QUANTIZED: dict[type[nn.Module], tuple[type[QuantizedLayer], Callable[[Any], dict[str, Any]]]] = {
    nn.Conv1d: (QuantizedConv1d, _conv_arguments),
    nn.Conv2d: (QuantizedConv2d, _conv_arguments),
    nn.ConvTranspose1d: (QuantizedConvTranspose1d, _transposed_arguments),
    nn.ConvTranspose2d: (QuantizedConvTranspose2d, _transposed_arguments),
    nn.Linear: (QuantizedLinear, _linear_arguments),
    nn.Embedding: (QuantizedEmbedding, _embedding_arguments),
}


def is_quantizable(module: nn.Module) -> bool:
    """Return whether a module has a quantized counterpart: exactly torch's own layer types, no subclasses.

    Its weight may be parametrized, but no other tensor of it.
    """
    computed = set(module.parametrizations) if parametrize.is_parametrized(module) else set()  # type: ignore[arg-type]
    return parametrize.type_before_parametrizations(module) in _QUANTIZED and computed <= {"weight"}


def quantized_layer(module: nn.Module, precision: PrecisionState, group: PrecisionGroup, index: int) -> QuantizedLayer:
    """Return the quantized layer for a float one; the parameters are shared, not copied."""
    layer_type, arguments = _QUANTIZED[parametrize.type_before_parametrizations(module)]
    bias = {} if layer_type is QuantizedEmbedding else {"bias": module.bias is not None}
    layer = layer_type(**arguments(module), **bias, device="meta")
    layer.take_weight(module)
    if bias:
        layer.bias = module.bias  # type: ignore[assignment]
    layer.train(module.training)
    layer.attach(precision, group, index)
    return layer


def without_quantizer(layer: QuantizedLayer) -> nn.Module:
    """Return the float layer of a quantized one, with its current float weight as a parameter."""
    kind, arguments = next((kind, entry[1]) for kind, entry in _QUANTIZED.items() if isinstance(layer, entry[0]))
    bias = {} if kind is nn.Embedding else {"bias": layer.bias is not None}
    plain = kind(**arguments(layer), **bias, device="meta")
    own = layer.weight
    plain.weight = nn.Parameter(layer.float_weight.detach()) if own is None else own
    if bias:
        plain.bias = layer.bias  # type: ignore[assignment]
    return plain.train(layer.training)
