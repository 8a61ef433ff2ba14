"""The end of a run: averaged weights, calibration at max_bits, final evaluation, and the result files."""

import hashlib
import json
import platform
from dataclasses import asdict, replace
from importlib.metadata import version

import numpy as np
import torch
from safetensors.torch import save

import cpt_deploy
from cpt_deploy import readable
from cpt_deploy.errors import RunInterruptedError
from cpt_deploy.precision import share_of_steps
from cpt_deploy.report import plot_curves
from cpt_deploy.training.loop.progress import Stopwatch
from cpt_deploy.training.loop.run import Run
from cpt_deploy.training.loop.setup import RunObjects
from cpt_deploy.training.reports import RunReport
from cpt_deploy.training.run_directory.checkpoints import read_checkpoint
from cpt_deploy.training.run_directory.files import disk_errors, write_atomically
from cpt_deploy.training.run_directory.metrics_log import evaluation_columns
from cpt_deploy.training.task import Final


def finish(run: Run) -> RunReport:
    """Calibrate and evaluate the trained model and write weights, curves and report.

    Raises:
        RunInterruptedError: After a signal; a resumed run starts again at calibration.
        DataError: If a file cannot be written.
    """
    watch = Stopwatch()
    task, objects, progress = run.task, run.objects, run.progress
    settings = task.recipe.train
    if objects.averaged is not None:
        _take_average(objects)
    if settings.final == "best":
        _take_best(run)
    objects.model.set_bits(task.recipe.precision.max_bits, task.recipe.precision.grad_max_bits)  # as the files say
    if settings.calibration_batches:
        _calibrate(run)
    calibration_seconds = watch.lap()
    found = task.evaluate_calibrated(
        objects.model, objects.device, progress.step, lambda: run.interruption.requested, run.process_group
    )
    if found is None:
        _raise_if_interrupted(run)
    assert found is not None
    progress.eval_seconds += watch.lap()
    result = Final(*(replace(evaluation, calibrated=True) for evaluation in found))
    epoch = round(progress.step / task.steps_per_epoch, 4)
    run.log.log({"step": progress.step, "epoch": epoch, **evaluation_columns(result.held_out)})
    run.reporter.evaluated(result.held_out)
    return run.process_group.from_main(lambda: _write_results(run, result, calibration_seconds))


def _write_results(run: Run, result: Final, calibration_seconds: float) -> RunReport:
    digest = _write_weights(run)
    draw_curves(run)
    report = _report(run, result, digest, calibration_seconds)
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    with disk_errors("the report", run.directory.report):
        write_atomically(run.directory.report, text.encode())
    return report


def draw_curves(run: Run) -> None:
    """Draw `curves.png` from the metrics so far.

    Raises:
        DataError: If it cannot be written.
    """
    if not run.process_group.is_main:
        return
    objects, directory, total = run.objects, run.directory, run.task.total_steps
    with disk_errors("curves", directory.curves):
        plot_curves(
            directory.metrics,
            directory.curves,
            metric=run.task.metric,
            held_out=run.task.held_out,
            title=run.task.recipe.name,
            bits=[objects.forward.bits_at(step, total) for step in range(total)],
            grad_bits=[objects.backward.bits_at(step, total) for step in range(total)],
        )


def _take_average(objects: RunObjects) -> None:
    """Replace the weights by their average; calibration then re-estimates the statistics that belong to them."""
    assert objects.averaged is not None
    averages = objects.averaged.module.parameters()
    with torch.no_grad():
        for parameter, average in zip(objects.model.parameters(), averages, strict=True):
            parameter.copy_(average)


def _take_best(run: Run) -> None:
    """Replace the weights by those of the best evaluation.

    Raises:
        CheckpointError: If their checkpoint is damaged.
    """
    best = run.process_group.from_main(lambda: read_checkpoint(run.directory.best))
    prefix = "model."
    state = {name.removeprefix(prefix): tensor for name, tensor in best.tensors.items() if name.startswith(prefix)}
    run.objects.model.load_state_dict(state)


def _calibrate(run: Run) -> None:
    """Calibrate the model on training batches.

    Raises:
        RunInterruptedError: After a signal.
    """
    run.task.calibrate(run.synchronization, run.objects.device, lambda: run.interruption.requested, run.process_group)
    _raise_if_interrupted(run)


def _raise_if_interrupted(run: Run) -> None:
    number = run.signal_of_any()
    if number is None:
        return
    raise RunInterruptedError(
        f"Stopped after the last step, before the model was calibrated; the state is saved in {run.directory.last}",
        signal_number=number,
        hint=f"finish it: cpt train --resume {readable.argument(run.directory.path)}",
    )


def _write_weights(run: Run) -> str:
    """Write `model.safetensors` and return its SHA-256."""
    path = run.directory.weights
    state = run.objects.model.state_dict()
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    # One entry only: safetensors writes several in random order, and the same run must give the same file.
    content = save(tensors, {"format": "pt"})
    with disk_errors("the weights", path):
        write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def _report(run: Run, result: Final, weights_sha256: str, calibration_seconds: float) -> RunReport:
    task, objects, progress = run.task, run.objects, run.progress
    recipe, cost = task.recipe, objects.meter.summary()
    precision = recipe.precision
    shares = share_of_steps(objects.forward, task.total_steps)
    return RunReport(
        name=recipe.name,
        model={
            "name": recipe.model.name,
            "parameters": objects.parameters,
            "macs": sum(layer.macs for layer in objects.model.layers()),
            "layers": objects.layers_by_group,
            "conversion": objects.model.conversion.to_dict(),
            **({} if task.pretrained is None else {"weights": asdict(task.pretrained)}),
        },
        task=task.name,
        metric=task.metric,
        held_out=task.held_out,
        **task.describe(),
        bits={
            "min_bits": precision.bounds[0],
            "max_bits": precision.max_bits,
            "schedule": precision.schedule,
            "grad_schedule": precision.grad_schedule,
            "grad_max_bits": precision.grad_max_bits,
            "shares": {str(bits): share for bits, share in shares.items()},
        },
        steps=progress.step,
        epochs=progress.step / task.steps_per_epoch,
        test=result.test,
        valid=None if task.held_out == "test" else result.held_out,
        best=progress.best,
        cost={**cost.to_dict(), "ratio_to_static": 1.0 - cost.saving},
        seconds={
            "training": progress.train_seconds,
            "waiting_for_data": progress.data_seconds,
            "evaluation": progress.eval_seconds,
            "calibration": calibration_seconds,
            "total": progress.train_seconds + progress.eval_seconds + calibration_seconds,
        },
        images_per_s=progress.samples / max(progress.train_seconds, 1e-9),
        device=_describe_device(objects.device, run.process_group.count),
        versions={
            "cpt-deploy": cpt_deploy.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": version("torchvision"),
            "numpy": np.__version__,
        },
        weights_sha256=weights_sha256,
        steps_by_bits=_steps_by_bits(run),
    )


def _steps_by_bits(run: Run) -> dict[str, dict[str, float | int | None]]:
    """Return the cost of steps at each bit-width: calculated BitOPs, with gradients at their max_bits, and measured."""
    precision, batch = run.task.recipe.precision, run.task.step_samples

    def on_paper(bits: str) -> float:
        gradients = int(bits) if int(bits) > precision.max_bits else precision.grad_max_bits  # in float32 both are
        return run.objects.meter.step_cost(int(bits), gradients, batch) / 1e9

    return {bits: {"gbitops": on_paper(bits), **cost} for bits, cost in run.costs.summary().items()}


def _describe_device(device: torch.device, processes: int) -> str:
    many = "" if processes == 1 else f"{processes} processes, first on "
    if device.type == "cuda":
        return f"{many}{device}: {torch.cuda.get_device_name(device)}"
    return f"{many}cpu: {torch.get_num_threads()} threads"
