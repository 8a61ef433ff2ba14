"""Synchronization of a distributed run, so that all processes train one model on one batch.

DistributedDataParallel averages gradients, and BatchNorm uses the statistics of all processes. One small all-gather
per step, after forward, exchanges the rest: the range of each activation quantizer, loss, hits, and received signals.
"""

from collections.abc import Iterable
from inspect import signature
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cpt_deploy.quantization import (
    QuantizedModel,
    calibrate,
    estimate,
    round_biases,
    set_synchronized,
    synchronize_norms,
)
from cpt_deploy.training.distributed.process_group import ProcessGroup


class StepTotals(NamedTuple):
    """Loss, hits and signal of a step over all processes, 0-dim each.

    Args:
        loss: Mean loss of the whole batch.
        correct: Number of its samples that were classified correctly.
        signal: The max signal number that a process received, or 0.
    """

    loss: Tensor
    correct: Tensor
    signal: Tensor


class Synchronization:
    """Keeps the copies of the model equal in all processes; in a single process, it leaves the model as it is.

    Within a step each process quantizes a tensor in the range of its own part of the batch, which clips nothing. The
    ranges that are kept, and that evaluation, calibration and freezing use, are those of the whole batch everywhere.

    Args:
        model: This process's copy, which gets the weights and buffers of the main process.
        process_group: The process group.
        device: Device of the model.
    """

    def __init__(self, model: QuantizedModel, process_group: ProcessGroup, device: torch.device) -> None:
        self.model, self.process_group = model, process_group
        self.quantizers = [quantizer for _, quantizer in model.quantizers()]
        self.replica: nn.Module = model
        if process_group.count == 1:
            return
        synchronize_norms(model.network)
        model.modules_replaced()
        for quantizer in self.quantizers:
            quantizer.deferred = True
        replicate: Any = DistributedDataParallel
        known = signature(replicate).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its older name
        self.replica = replicate(
            self.replica,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **{buffers: False},  # statistics and ranges are equal already
        )

    def exchange(self, loss: Tensor, correct: Tensor, signal: int) -> StepTotals:
        """Exchange loss, hits, signal and ranges of this step's forward; every process must call it once per step.

        Args:
            loss: This process's share of the whole batch's mean loss, 0-dim.
            correct: Its hits, 0-dim.
            signal: Number of the signal that it received, or 0.
        """
        if self.process_group.count == 1:
            return StepTotals(loss, correct, torch.tensor(signal))
        losses, hits, signals = self._exchange(torch.stack([loss, correct, torch.full_like(loss, signal)]).float())
        return StepTotals(losses.sum(), hits.sum(), signals.amax())

    def exchange_ranges(self, stop: bool) -> bool:
        """Exchange the ranges of a forward pass without a loss; every process must call it.

        Returns:
            Whether any process is to stop.
        """
        if self.process_group.count == 1:
            return stop
        (stops,) = self._exchange(self.quantizers[0].low.new_tensor([float(stop)]))
        return bool(stops.any())

    def _exchange(self, figures: Tensor) -> Tensor:
        """Update all ranges with those over all processes; return the `figures` (n,) of each process as (n, count)."""
        lows, highs = (
            torch.stack(ends).float()
            for ends in zip(*(quantizer.current for quantizer in self.quantizers), strict=True)
        )
        gathered = self.process_group.gather(torch.cat([lows, highs, figures]))
        count = len(self.quantizers)
        low, high = gathered[:, :count].amin(0), gathered[:, count : 2 * count].amax(0)
        for quantizer, lowest, highest in zip(self.quantizers, low, high, strict=True):
            quantizer.observe(lowest, highest)
        return gathered[:, 2 * count :].T

    def calibrate(self, inputs: Iterable[Tensor]) -> int:
        """Calibrate on the batches of all processes, each of which has whole batches of its own.

        Calibration only averages over batches, so the average of the processes' averages, weighted by their numbers
        of batches, is that of a single process up to rounding.

        Args:
            inputs: This process's batches; may be empty.

        Returns:
            The number of batches of all processes.
        """
        iterator = iter(inputs)
        first = next(iterator, None)
        batches = iter(()) if first is None else chain([first], iterator)
        if self.process_group.count == 1:
            return 0 if first is None else calibrate(self.model, batches)
        set_synchronized(self.model, False)
        for quantizer in self.quantizers:
            quantizer.deferred = False
        with self.model.at_max_bits():
            used = 0 if first is None else estimate(self.model, batches)
            total = self._average(used)
            round_biases(self.model)  # in the common ranges, so that all processes round alike
        return total

    def _average(self, used: int) -> int:
        """Average the statistics of all processes, each estimated on `used` batches; return their total number."""
        statistics, counts = self._statistics()
        own = torch.cat([tensor.reshape(-1).double() for tensor in statistics])
        weighted = self.process_group.gather(torch.cat([own * used, own.new_full((1,), used)])).sum(0)
        total = round(float(weighted[-1]))
        average = weighted[:-1] / max(total, 1)
        for tensor in statistics:
            tensor.copy_(average[: tensor.numel()].view_as(tensor))
            average = average[tensor.numel() :]
        for count in counts:
            count.fill_(total)
        return total

    def _statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the buffers that calibration estimates, and those that count its batches."""
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        buffers = [tensor for norm in norms for tensor in (norm.running_mean, norm.running_var) if tensor is not None]
        buffers += [tensor for quantizer in self.quantizers for tensor in (quantizer.low, quantizer.high)]
        counts = [norm.num_batches_tracked for norm in norms if norm.num_batches_tracked is not None]
        return buffers, counts + [quantizer.batches for quantizer in self.quantizers]
