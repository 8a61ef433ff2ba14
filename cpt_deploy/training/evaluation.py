"""Evaluate the accuracy of a model on a set of images, at max_bits."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.training.distributed.process_group import ALONE, ProcessGroup
from cpt_deploy.training.reporting.reports import Evaluation

MANY_CLASSES = 5
"""Top-5 accuracy is meaningful only with more classes than this."""


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
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # summed loss, hits, hits among the top five
    images, stopped = 0, False
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.at_max_bits():
            for inputs, labels in batches:
                stopped = stop()
                if stopped:
                    break
                logits = model(inputs.to(device))
                target = labels.to(device)
                loss = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
                hits = (logits.argmax(dim=1) == target).sum()
                best = logits.topk(min(MANY_CLASSES, classes), dim=1).indices
                totals += torch.stack([loss, hits, (best == target[:, None]).sum()])
                images += len(target)
    finally:
        model.train(training)
    gathered = process_group.gather(
        torch.tensor([*totals.tolist(), float(images), float(stopped)], dtype=torch.float64)
    )
    loss_sum, top1, top5, count, stopped_in = gathered.sum(dim=0).tolist()
    if stopped_in:
        return None
    return Evaluation(
        step=step,
        loss=loss_sum / count,
        metrics={"accuracy": top1 / count, **({"top5": top5 / count} if classes > MANY_CLASSES else {})},
        samples=int(count),
        seconds=time.perf_counter() - began,
    )
