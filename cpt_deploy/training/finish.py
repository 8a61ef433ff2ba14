"""The end of a run: averaged weights, settling at the upper bound, the final evaluation, and the files that stay."""

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor

import cpt_deploy
from cpt_deploy.data import ArrayImages, eval_loader, train_loader
from cpt_deploy.errors import RunInterruptedError
from cpt_deploy.precision import share_of_steps
from cpt_deploy.quantization import settle
from cpt_deploy.report import plot_curves
from cpt_deploy.training.evaluation import evaluate
from cpt_deploy.training.files import disk_errors, write_atomically
from cpt_deploy.training.metrics_log import evaluation_columns
from cpt_deploy.training.progress import Stopwatch
from cpt_deploy.training.reports import Evaluation, RunReport
from cpt_deploy.training.run import Run
from cpt_deploy.training.setup import RunObjects


def finish(run: Run) -> RunReport:
    """Settle and evaluate the trained model and write weights, curves and report.

    Raises:
        RunInterruptedError: After a signal; the run can be resumed and then begins here again.
        DataError: If a file cannot be written.
    """
    watch = Stopwatch()
    data, objects, directory, progress = run.data, run.objects, run.directory, run.progress
    settings = data.recipe.train
    if objects.averaged is not None:
        _take_average(objects)
    if settings.settle_batches:
        settle(objects.model, islice(_settling_batches(run), settings.settle_batches))
    settle_seconds = watch.lap()
    batches = eval_loader(data.test, data.preprocessing, settings.eval_batch_size, workers=data.recipe.data.workers)
    result = evaluate(
        objects.model,
        batches,
        classes=len(data.test.classes),
        device=objects.device,
        step=progress.step,
        stop=lambda: run.interruption.requested,
    )
    if result is None:
        raise _interrupted(run)
    progress.eval_seconds += watch.lap()
    result = replace(result, settled=True)
    run.log.log(
        {"step": progress.step, "epoch": round(progress.step / data.steps_per_epoch, 4), **evaluation_columns(result)}
    )
    run.reporter.evaluated(result)
    digest = _write_weights(run)
    draw_curves(run)
    report = _report(run, result, digest, settle_seconds)
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with disk_errors("the report", directory.report):
        write_atomically(directory.report, text.encode())
    return report


def draw_curves(run: Run) -> None:
    """Draw `curves.png` from the metrics so far.

    Raises:
        DataError: If it cannot be written.
    """
    objects, directory, total = run.objects, run.directory, run.data.total_steps
    with disk_errors("curves", directory.curves):
        plot_curves(
            directory.metrics,
            directory.curves,
            title=run.data.recipe.name,
            bits=[objects.forward.bits_at(step, total) for step in range(total)],
            grad_bits=[objects.backward.bits_at(step, total) for step in range(total)],
        )


def _take_average(objects: RunObjects) -> None:
    """Replace the weights by their average; settling then re-estimates the statistics that belong to them."""
    assert objects.averaged is not None
    averages = objects.averaged.module.parameters()
    with torch.no_grad():
        for parameter, average in zip(objects.model.parameters(), averages, strict=True):
            parameter.copy_(average)


def _settling_batches(run: Run) -> Iterator[Tensor]:
    """Yield training inputs, augmented as in training, of the epochs after the last one."""
    data = run.data
    for epoch in count(-(-data.total_steps // data.steps_per_epoch)):
        for inputs, _ in train_loader(
            data.train,
            data.preprocessing,
            data.augment,
            batch_size=data.recipe.train.batch_size,
            seed=data.recipe.seed,
            epoch=epoch,
            workers=data.recipe.data.workers,
        ):
            if run.interruption.requested:
                raise _interrupted(run)
            yield inputs.to(run.objects.device, memory_format=torch.channels_last)


def _interrupted(run: Run) -> RunInterruptedError:
    assert run.interruption.signal_number is not None
    return RunInterruptedError(
        f"Stopped after the last step, before the model was settled; the state is saved in {run.directory.last}",
        signal_number=run.interruption.signal_number,
        hint=f"finish it: cpt train --resume {run.directory.path}",
    )


def _write_weights(run: Run) -> str:
    """Write `model.safetensors` and return its SHA-256."""
    path = run.directory.weights
    state = run.objects.model.state_dict()
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    # One entry only: safetensors writes several in random order, and the same run is to give the same file.
    content = save(tensors, {"format": "pt"})
    with disk_errors("the weights", path):
        write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def _report(run: Run, result: Evaluation, weights_sha256: str, settle_seconds: float) -> RunReport:
    data, objects, progress = run.data, run.objects, run.progress
    recipe, cost = data.recipe, objects.meter.summary()
    precision = recipe.precision
    shares = share_of_steps(objects.forward, data.total_steps)
    return RunReport(
        name=recipe.name,
        model={
            "name": recipe.model.name,
            "parameters": objects.parameters,
            "macs": sum(layer.macs for layer in objects.model.layers()),
            "layers": objects.layers_by_role,
        },
        data={
            "name": recipe.data.name,
            "train_images": len(data.train),
            "test_images": len(data.test),
            "train_sha256": data.train.digest() if isinstance(data.train, ArrayImages) else None,
            "test_sha256": data.test.digest() if isinstance(data.test, ArrayImages) else None,
        },
        classes=data.train.classes,
        preprocessing=data.preprocessing.to_dict(),
        bits={
            "lower": precision.lower,
            "upper": precision.upper,
            "schedule": precision.schedule,
            "grad_schedule": precision.grad_schedule,
            "grad_upper": precision.grad_upper,
            "shares": {str(bits): share for bits, share in shares.items()},
        },
        steps=progress.step,
        epochs=progress.step / data.steps_per_epoch,
        test=result,
        best=progress.best,
        cost={**cost.to_dict(), "ratio_to_static": 1.0 - cost.saving},
        seconds={
            "training": progress.train_seconds,
            "evaluation": progress.eval_seconds,
            "settling": settle_seconds,
            "total": progress.train_seconds + progress.eval_seconds + settle_seconds,
        },
        images_per_s=progress.samples / max(progress.train_seconds, 1e-9),
        device=_describe_device(objects.device),
        versions={
            "cpt-deploy": cpt_deploy.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": np.__version__,
        },
        weights_sha256=weights_sha256,
    )


def _describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}: {torch.cuda.get_device_name(device)}"
    return f"cpu: {torch.get_num_threads()} threads"
