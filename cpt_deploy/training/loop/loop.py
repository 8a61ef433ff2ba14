"""The training loop: steps; logging, evaluation and checkpoints between them; and early stops."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cpt_deploy import readable
from cpt_deploy.errors import RunInterruptedError, TrainingDivergedError
from cpt_deploy.metric import perplexity_of
from cpt_deploy.precision import quantized_steps
from cpt_deploy.recipe import interval_steps
from cpt_deploy.training.loop.cuda_graph_step import cuda_graph_step
from cpt_deploy.training.loop.learning_rate import learning_rate_at
from cpt_deploy.training.loop.optimizers import set_learning_rate
from cpt_deploy.training.loop.progress import Stopwatch, Window
from cpt_deploy.training.loop.run import Run
from cpt_deploy.training.randomness import seed_torch
from cpt_deploy.training.reporting.profiling import StepProfiler
from cpt_deploy.training.reports import StepProgress
from cpt_deploy.training.run_directory.checkpoints import write_checkpoint
from cpt_deploy.training.run_directory.metrics_log import evaluation_columns
from cpt_deploy.training.run_directory.run_state import all_finite, capture
from cpt_deploy.training.task import StepOutcome


class TrainingLoop:
    """Trains from the current step to the end of the run.

    Args:
        run: The run.
        profiler: Profiles some of its steps.
    """

    def __init__(self, run: Run, profiler: StepProfiler | None = None) -> None:
        self.task, self.objects, self.directory, self.progress = run.task, run.objects, run.directory, run.progress
        self.log, self.reporter, self.process_group, self.parts = run.log, run.reporter, run.process_group, run
        self.profiler = profiler
        task, objects = run.task, run.objects
        self.settings = task.recipe.train
        self.total, self.per_epoch = task.total_steps, task.steps_per_epoch
        self.on_gpu = objects.device.type == "cuda"
        fits = task.recipe.quantization.scheme != "sbm"  # whose quantized values are not exact in bfloat16
        self.autocast = self.settings.amp == "bf16" or (self.settings.amp == "auto" and self.on_gpu and fits)
        self.cuda_graph_step = cuda_graph_step(run, autocast=self.autocast)
        # Each read of a loss waits for the device, so on a GPU losses are read at log steps only.
        self.read_each_step = not self.on_gpu
        self.signal: int | None = None
        self.told_signal: Tensor | None = None
        self.watch = Stopwatch()

    def run(self) -> None:
        """Train to the end.

        Raises:
            RunInterruptedError: After a signal; the state is saved.
            TrainingDivergedError: If the loss or a weight is NaN or infinite.
            DataError: If an image cannot be read or the disk is full.
        """
        progress = self.progress
        if progress.step and progress.evaluated_step != progress.step and self._evaluation_due():
            self._evaluate()  # the run was stopped during this evaluation
            if progress.evaluated_step != progress.step and self.signal is not None:
                raise self._interrupted(self.signal)  # once more; steps after it would leave it out for good
        stream = self.task.stream(range(progress.step, self.total), self.process_group, pin_memory=self.on_gpu)
        while (batch := self._next(stream)) is not None:
            self.parts.costs.begin(self._position(progress.step).bits)
            self._step(batch)
            self._after_step()

    def _next(self, stream: Iterator[Any]) -> Any:
        """Return the next batch, or `None` at the end; the waiting time is recorded."""
        waiting = Stopwatch()
        with self._labelled("data"):
            batch = next(stream, None)
        seconds = waiting.lap()
        self.progress.data_seconds += seconds
        self.progress.window.data_seconds += seconds
        return batch

    def _labelled(self, name: str) -> AbstractContextManager[object]:
        return nullcontext() if self.profiler is None else torch.profiler.record_function(name)

    def _step(self, batch: Any) -> None:
        objects, progress, now = self.objects, self.progress, self._position(self.progress.step)
        part = self.process_group.share.of(self.task.rows)
        groups = objects.group_bits(progress.step, self.total)
        objects.model.set_bits(now.bits, now.grad_bits, groups)
        objects.model.set_step(progress.step, part.start)
        set_learning_rate(objects.optimizer, now.lr)
        if self.process_group.count > 1:  # dropout differs between processes, and is the same after resuming
            seed_torch(self.task.recipe.seed, progress.step, self.process_group.rank)
        replayed = self._replayed(batch)
        loss, correct, samples, whole = replayed or self.task.step(
            self.parts.synchronization.replica, batch, objects.device, autocast=self.autocast
        )
        totals = self.parts.synchronization.exchange(
            loss.detach() * (samples / whole), correct, self.parts.interruption.signal_number or 0
        )
        progress.window.add(progress.step, totals.loss, totals.correct, whole)
        self.parts.following.add(totals.loss, whole)
        self.told_signal = totals.signal
        if self.read_each_step:
            self._read_losses()  # before the step, so that a NaN never reaches the weights
        if replayed is None:
            objects.optimizer.zero_grad(set_to_none=True)
            # Gradients are averaged over the processes, whose parts may differ by a sample.
            mine = loss if self.process_group.count == 1 else loss * (samples * self.process_group.count / whole)
            mine.backward()  # type: ignore[no-untyped-call]
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(objects.model.parameters(), self.settings.grad_clip)
        objects.optimizer.step()
        objects.meter.add(now.bits, now.grad_bits, whole, groups)
        if self.profiler is None or not self.profiler.is_on:
            self.parts.costs.end(now.bits)
        progress.step += 1
        progress.samples += whole

    def _replayed(self, batch: Any) -> StepOutcome | None:
        """Return the outcome of a step computed by the CUDA-graph step, or `None` if it has to be computed eagerly."""
        if self.cuda_graph_step is None or (self.profiler is not None and self.profiler.is_on):
            return None
        return self.cuda_graph_step(batch, self.objects.model.precision.branches)

    def _after_step(self) -> None:
        step, settings, last = self.progress.step, self.settings, self.progress.step == self.total
        seconds = self.watch.lap()
        self.progress.train_seconds += seconds
        self.progress.window.seconds += seconds
        if self.profiler is not None:
            self.profiler.step()
        averaged = self.objects.averaged
        if averaged is not None and step >= settings.swa.start * self.total and (self._due(settings.swa.every) or last):
            averaged.update_parameters(self.objects.model)
        if step % settings.steps_per_row(self.total) == 0 or last:
            self._log_row()
        self.reporter.step(self._position(step - 1))
        if self._evaluation_due():
            self._evaluate()
        self.parts.following.finished(step)  # after the rows of this step, before the checkpoint
        if self.process_group.count == 1:
            self.signal = self.parts.interruption.signal_number
        if last or self._due(settings.checkpoint_every) or self.signal is not None:
            self._save()
        if self.signal is not None and not last:
            raise self._interrupted(self.signal)

    def _interrupted(self, signal_number: int) -> RunInterruptedError:
        return RunInterruptedError(
            f"Stopped after step {self.progress.step} of {self.total}; the state is saved in {self.directory.last}",
            signal_number=signal_number,
            hint=f"continue: cpt train --resume {readable.argument(self.directory.path)}",
        )

    def _evaluate(self) -> None:
        progress = self.progress
        result = self.task.evaluate(
            self.objects.model,
            self.objects.device,
            progress.step,
            lambda: self.parts.interruption.requested,
            self.process_group,
        )
        progress.eval_seconds += self.watch.lap()
        if result is None:
            self.signal = self.parts.signal_of_any()
            return
        # In float32 steps the network is not trained as it is evaluated.
        counts = progress.step > self.total - quantized_steps(self.task.recipe.precision.delay, self.total)
        best = counts and (progress.best is None or self.task.is_better(result, progress.best))
        result = replace(result, best=best)
        progress.evaluated_step = progress.step
        self.log.log({**self._place(), **evaluation_columns(result)})
        self.reporter.evaluated(result)
        if best:
            progress.best = result
            self._save(best=True)
        elif counts:
            progress.plateaus += 1

    def _save(self, *, best: bool = False) -> None:
        self._read_losses()
        if not all_finite(self.objects.model):
            raise self._diverged(self.progress.step - 1, "a weight that is NaN or infinite")
        carried = self.task.state(self.objects.model, self.process_group)
        if self.process_group.is_main:
            progress = {**self.progress.state_dict(), "meter": self.objects.meter.state_dict()}
            state = {
                **progress,
                "data": self.task.data_digest,
                "costs": self.parts.costs.state_dict(),
                "following": self.parts.following.state_dict(),
            }
            checkpoint = capture(self.objects.model, self.objects.optimizer, self.objects.averaged, state, carried)
            path = self.directory.best if best else self.directory.last
            hint = f"free some space, then: cpt train --resume {readable.argument(self.directory.path)}; "
            write_checkpoint(path, checkpoint, hint=hint + self.directory.kept)
        self.watch.lap()

    def _read_losses(self) -> None:
        bad = self.progress.window.read()
        if bad is not None:
            raise self._diverged(bad[0], f"{bad[1]}")
        if self.process_group.count > 1 and self.told_signal is not None:
            self.signal = self.signal or int(self.told_signal) or None

    def _diverged(self, step: int, found: str) -> TrainingDivergedError:
        at = self._position(step)
        return TrainingDivergedError(
            f"Expected a finite loss, but got {found} at step {at.step} of {self.total}, "
            f"at {at.bits} bits forward and {at.grad_bits} backward; {self.directory.kept}",
            hint="lower optimizer.lr, add lr.warmup_steps, set train.grad_clip, or raise precision.min_bits",
        )

    def _position(self, step: int) -> StepProgress:
        """Return bits and learning rate of a step, counted from 0, with the figures of the last row of the log."""
        recipe, latest = self.task.recipe, self.progress.latest
        return StepProgress(
            step=step + 1,
            total_steps=self.total,
            epoch=step // self.per_epoch,
            bits=self.objects.forward.bits_at(step, self.total),
            grad_bits=self.objects.backward.bits_at(step, self.total),
            lr=learning_rate_at(
                recipe.optimizer.lr, recipe.lr, recipe.train.swa, step, self.total, self.progress.plateaus
            ),
            loss=latest.get("loss"),
            accuracy=latest.get("accuracy"),
            images_per_s=latest.get("images_per_s"),
            data_share=latest.get("data_share"),
        )

    def _place(self) -> dict[str, float]:
        return {"step": self.progress.step, "epoch": round(self.progress.step / self.per_epoch, 4)}

    def _due(self, interval: str | None) -> bool:
        return interval is not None and self.progress.step % interval_steps(interval, self.per_epoch) == 0

    def _evaluation_due(self) -> bool:
        return self._due(self.settings.eval_every) or self.progress.step == self.total

    def _log_row(self) -> None:
        self._read_losses()
        progress, at = self.progress, self._position(self.progress.step - 1)
        progress.latest, progress.window = progress.window.means(), Window()
        if "accuracy" not in self.task.train_metrics:
            del progress.latest["accuracy"]
        groups = self.objects.group_bits(progress.step - 1, self.total)
        bits = {"bits": at.bits, "grad_bits": at.grad_bits, "group_bits": groups}
        row: dict[str, Any] = {**self._place(), "lr": at.lr, **bits, **progress.latest}
        if "perplexity" in self.task.train_metrics:
            row["perplexity"] = perplexity_of(row["loss"])
        seconds = round(progress.train_seconds + progress.eval_seconds, 3)
        cost = self.parts.costs.columns(at.bits)
        self.log.log({**row, **cost, "gbitops": self.objects.meter.total / 1e9, "seconds": seconds})
