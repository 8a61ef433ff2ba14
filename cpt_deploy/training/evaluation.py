"""Evaluate the accuracy of a model on a set of images, at max_bits."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.quantization.modes import in_evaluation
from cpt_deploy.training.distributed.process_group import ALONE, ProcessGroup
from cpt_deploy.training.reports import Evaluation

Batch = TypeVar("Batch")

MANY_CLASSES = 5
"""Top-5 accuracy is meaningful only with more classes than this."""


def summed(
    model: QuantizedModel,
    batches: Iterable[Batch],
    measured: Callable[[Batch], Sequence[Tensor]],
    count: int,
    *,
    device: torch.device,
    stop: Callable[[], bool] = lambda: False,
    process_group: ProcessGroup = ALONE,
) -> list[float] | None:
    """Sum figures of a model at max_bits in evaluation mode, in float64, over the batches of all processes.

    Args:
        model: The model; its mode and bits are restored afterwards.
        batches: In a distributed run this process's own.
        measured: Returns the figures of a batch, 0-dim each on the device.
        count: Their number.
        device: Device of the model.
        stop: Called before each batch; if it returns true, evaluation stops.
        process_group: The processes that evaluate together, each of which must call this.

    Returns:
        The sums, or `None` if `stop` returned true in one of the processes.
    """
    totals = torch.zeros(count, dtype=torch.float64, device=device)
    stopped = False
    with torch.no_grad(), in_evaluation(model), model.at_max_bits():
        for batch in batches:
            stopped = stop()
            if stopped:
                break
            totals += torch.stack([figure.double() for figure in measured(batch)])
    *sums, stopped_in = (
        process_group.gather(torch.cat([totals.cpu(), totals.new_tensor([stopped]).cpu()])).sum(dim=0).tolist()
    )
    return None if stopped_in else sums


def evaluate(
    model: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    device: torch.device,
    step: int,
    stop: Callable[[], bool] = lambda: False,
    process_group: ProcessGroup = ALONE,
) -> Evaluation | None:
    """Evaluate a model at max_bits, in float32 whatever its training dtype.

    Args:
        model: The model; its mode and bits are restored afterwards.
        batches: Inputs, float32 (N, C, H, W), and labels, int64 (N,); in a distributed run this process's own.
        classes: Number of classes.
        device: Device of the model.
        step: Number of finished steps, for the result.
        stop: Called before each batch; if it returns true, evaluation stops.
        process_group: The processes that evaluate together, each of which must call this.

    Returns:
        The evaluation of all images of all processes, or `None` if `stop` returned true in one of them.
    """
    began = time.perf_counter()

    def measured(batch: tuple[Tensor, Tensor]) -> list[Tensor]:
        logits, target = model(batch[0].to(device)), batch[1].to(device)
        loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
        best = logits.topk(min(MANY_CLASSES, classes), dim=1).indices
        hits = (logits.argmax(dim=1) == target).sum(), (best == target[:, None]).sum()
        return [loss, *hits, target.new_tensor(len(target))]

    sums = summed(model, batches, measured, 4, device=device, stop=stop, process_group=process_group)
    if sums is None:
        return None
    loss_sum, top1, top5, count = sums
    return Evaluation(
        step=step,
        loss=loss_sum / count,
        metrics={"accuracy": top1 / count, **({"top5": top5 / count} if classes > MANY_CLASSES else {})},
        samples=int(count),
        seconds=time.perf_counter() - began,
    )
