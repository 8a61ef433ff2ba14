"""Accuracy of a model on a set of images, at its upper bound."""

import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.training.ranks import ALONE, Ranks
from cpt_deploy.training.reports import Evaluation

MANY_CLASSES = 5
"""Top-5 accuracy says something only with more classes than this."""


def evaluate(
    model: QuantizedModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    device: torch.device,
    step: int,
    stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> Evaluation | None:
    """Evaluate a model at the upper bound, in float32, whatever it trains in.

    Args:
        model: The model; its mode and bits are restored afterwards.
        batches: Inputs, float32 (N, C, H, W), and labels, int64 (N,); in a distributed run this process's own.
        classes: Number of classes.
        device: Where the model is.
        step: Number of finished steps, for the result.
        stop: Asked before each batch whether to give up.
        ranks: The processes that evaluate together, each of which must call this.

    Returns:
        The evaluation of all images of all processes, or `None` if `stop` said so in one of them.
    """
    began = time.perf_counter()
    loss = MeanMetric().to(device)
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, top_k=5, average="micro").to(device) if classes > MANY_CLASSES else None
    images, stopped = 0, False
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), model.upper_bound():
            for inputs, labels in batches:
                stopped = stop()
                if stopped:
                    break
                logits = model(inputs.to(device))
                target = labels.to(device)
                loss.update(torch.nn.functional.cross_entropy(logits, target), weight=len(target))
                top1.update(logits, target)
                if top5 is not None:
                    top5.update(logits, target)
                images += len(target)
    finally:
        model.train(training)
    told = ranks.gather(torch.tensor([float(images), float(stopped)], dtype=torch.float64))
    if told[:, 1].any():
        return None
    # The metrics gather from all processes by themselves.
    return Evaluation(
        step=step,
        loss=float(loss.compute()),
        top1=round(float(top1.compute()), 7),  # they are float32: further digits are noise
        top5=None if top5 is None else round(float(top5.compute()), 7),
        images=int(told[:, 0].sum()),
        seconds=time.perf_counter() - began,
    )
