"""BatchNorm over the batches of all processes of a distributed run, on any device.

torch's own SyncBatchNorm takes GPU tensors only and is no BatchNorm2d, which calibration and freezing look for.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


def over_processes(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the statistics of the batches of all processes together, by one collective.

    Args:
        mean: Mean of this process's batch, (C,) float32.
        variance: Its biased variance (divided by the count), (C,) float32.
        count: Number of values per channel.

    Returns:
        Mean and variance, (C,), and the number of values, 0-dim.
    """
    own = torch.cat([mean, variance, mean.new_full((1,), count)])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    stacked, channels = torch.stack(gathered), len(mean)
    means, variances, counts = stacked[:, :channels], stacked[:, channels:-1], stacked[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total


def summed_over_processes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of two tensors (C,) over all processes, by one collective."""
    sums = torch.cat([first, second])
    dist.all_reduce(sums)
    return sums[: len(first)], sums[len(first) :]


class _Normalise(torch.autograd.Function):
    """Normalise by the mean and variance of all processes; one collective forward and one backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        own_variance, own_mean = torch.var_mean(x.float(), axes, correction=0)
        mean, variance, total = over_processes(own_mean, own_variance, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), total)
        y = functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, inverse, total = ctx.saved_tensors
        dy = grad_outputs[0]
        shape = [1, -1, *([1] * (x.dim() - 2))]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        normalised = (x - mean.view(shape)) * inverse.view(shape)
        # Sums of this process only: the parameters' gradients are averaged over processes later.
        grad_bias, grad_weight = dy.sum(axes).float(), (dy * normalised).sum(axes).float()
        sum_dy, sum_product = summed_over_processes(grad_bias, grad_weight)
        mean_dy, mean_product = sum_dy / total, sum_product / total
        # Equivalent to dy · p + x · q + r as derived in `terms` of kernels/parameters.py.
        factor = inverse if weight is None else inverse * weight
        dx = (dy - mean_dy.view(shape) - normalised * mean_product.view(shape)) * factor.view(shape)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        return dx.to(x.dtype), grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None


class _Synchronized(nn.modules.batchnorm._BatchNorm):
    """Base class of both synchronized BatchNorms.

    Attributes:
        synchronized: Whether training uses the statistics of all processes; otherwise this is a plain BatchNorm.
    """

    synchronized: bool = True

    def forward(self, input: Tensor) -> Tensor:
        """Apply BatchNorm; in training with the statistics of the whole batch."""
        if not (self.training and is_synchronized(self)):
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        output: Tensor
        output, mean, variance, total = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (total / (total - 1.0))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return output


def is_synchronized(norm: nn.Module) -> bool:
    """Return whether a normalisation uses the statistics of all processes in training."""
    return isinstance(norm, _Synchronized) and norm.synchronized


class SynchronizedBatchNorm1d(_Synchronized, nn.BatchNorm1d):
    """BatchNorm1d over all processes."""


class SynchronizedBatchNorm2d(_Synchronized, nn.BatchNorm2d):
    """BatchNorm2d over all processes."""


_SYNCHRONIZED: dict[type[nn.Module], type[_Synchronized]] = {
    nn.BatchNorm1d: SynchronizedBatchNorm1d,
    nn.BatchNorm2d: SynchronizedBatchNorm2d,
}


def synchronize_norms(model: nn.Module) -> None:
    """Replace each BatchNorm of a model by one over all processes; parameters and buffers stay the same objects."""
    for name, module in list(model.named_modules()):
        made = _SYNCHRONIZED.get(type(module))
        if made is None:
            continue
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        norm = made(
            module.num_features,
            eps=module.eps,
            momentum=module.momentum,
            affine=module.affine,
            track_running_stats=module.track_running_stats,
            device="meta",
        )
        norm._parameters, norm._buffers = module._parameters, module._buffers
        norm.train(module.training)
        model.set_submodule(name, norm)


def set_synchronized(model: nn.Module, synchronized: bool) -> None:
    """Set whether the BatchNorms made by `synchronize_norms` use the batches of all processes or only their own."""
    for module in model.modules():
        if isinstance(module, _Synchronized):
            module.synchronized = synchronized
