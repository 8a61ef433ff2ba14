"""The training task of image classifiers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cpt_deploy import readable
from cpt_deploy.data import WHOLE, ArrayImages, FileImages, Share, eval_loader, training_stream
from cpt_deploy.metric import ACCURACY
from cpt_deploy.quantization import QuantizedModel
from cpt_deploy.recipe import Recipe
from cpt_deploy.recipe.tasks import IMAGE_CLASSIFICATION
from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.evaluation import evaluate
from cpt_deploy.training.fine_tuning import build_pretrained, resolve_weights
from cpt_deploy.training.loop.plan_doubts import dropped_samples
from cpt_deploy.training.loop.setup import RunData, build_cpt_model, load_data
from cpt_deploy.training.reports import Evaluation, Pretrained
from cpt_deploy.training.task import StepOutcome, Stop, TrainingTask


class Classification(TrainingTask):
    """The task, see `TrainingTask`.

    Args:
        data: Images and their preprocessing.
    """

    name = IMAGE_CLASSIFICATION
    unit = "images"
    metric = ACCURACY
    train_metrics = ("accuracy",)
    test_metrics = ("accuracy", "top5")
    replayable = True

    def __init__(self, data: RunData) -> None:
        self.data, self.recipe = data, data.recipe
        self.pretrained: Pretrained | None = None
        self.loss = nn.CrossEntropyLoss(label_smoothing=data.recipe.train.label_smoothing)

    @property
    def workers(self) -> int:
        """See `TrainingTask`."""
        return self.data.workers

    @property
    def steps_per_epoch(self) -> int:
        """See `TrainingTask`."""
        return self.data.steps_per_epoch

    @property
    def step_samples(self) -> int:
        """Number of images of a batch."""
        return min(self.recipe.train.batch_size, len(self.data.train))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.data.train.classes)

    @property
    def samples(self) -> tuple[int, int]:
        """Number of training and of test images."""
        return len(self.data.train), len(self.data.test)

    @property
    def left_out(self) -> Mapping[str, int]:
        """Number of files of both splits that are no images, and of those that cannot be read, see `TrainingTask`."""
        counts: Counter[str] = Counter()
        for images in (self.data.train, self.data.test):
            if isinstance(images, FileImages):
                counts.update({**images.left_out, **({"unreadable": len(images.skipped)} if images.skipped else {})})
        return dict(counts.most_common())

    @property
    def divided(self) -> bool:
        """See `TrainingTask`."""
        return isinstance(self.data.test, FileImages) and self.data.test.divided

    @cached_property
    def data_digest(self) -> str:
        """See `TrainingTask`."""
        return self.data.train.fingerprint()

    def doubts(self) -> list[str]:
        """See `TrainingTask`."""
        train = self.data.train
        found = [dropped_samples(len(train), self.recipe.train.batch_size)]
        seen = len(np.unique(train.labels))
        if seen == 1:
            found.append("all training images are of one class, which leaves nothing to tell apart")
        elif seen < len(train.classes):
            missing = [name for label, name in enumerate(train.classes) if label not in train.labels]
            found.append(
                f"{readable.counted(len(missing), 'class', 'classes')} without training images, such as {missing[0]}"
            )
        return [doubt for doubt in found if doubt is not None]

    def build_model(self) -> QuantizedModel:
        """Build the model, with the initial weights of the recipe, see `TrainingTask`."""
        if self.recipe.model.weights is None:
            return build_cpt_model(self.recipe, self.classes, self.data.preprocessing)
        model, self.pretrained = build_pretrained(self.recipe, self.classes, self.data.preprocessing)
        return model

    def stream(self, steps: range, process_group: ProcessGroup, *, pin_memory: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels, see `TrainingTask`."""
        return training_stream(
            self.data.train_inputs,
            self.data.augment,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            batches=steps,
            workers=self.workers,
            share=process_group.share,
            pin_memory=pin_memory,
        )

    def step(
        self, model: nn.Module, batch: tuple[Tensor, Tensor], device: torch.device, *, autocast: bool
    ) -> StepOutcome:
        """See `TrainingTask`."""
        on_gpu = device.type == "cuda"
        x = batch[0].to(device, memory_format=torch.channels_last, non_blocking=on_gpu)
        y = batch[1].to(device, non_blocking=on_gpu)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(x)
        correct = (logits.detach().argmax(1) == y).sum()
        return StepOutcome(self.loss(logits.float(), y), correct, len(y), self.step_samples)

    def evaluate(
        self, model: QuantizedModel, device: torch.device, step: int, stop: Stop, process_group: ProcessGroup
    ) -> Evaluation | None:
        """Evaluate on the test images, see `TrainingTask`."""
        batches = eval_loader(
            self.data.test_inputs,
            self.data.preprocessing,
            self.recipe.train.eval_batch_size,
            workers=self.workers,
            share=process_group.share,
            pin_memory=device.type == "cuda",
        )
        return evaluate(
            model, batches, classes=self.classes, device=device, step=step, stop=stop, process_group=process_group
        )

    def calibration_inputs(self, share: Share = WHOLE) -> Iterator[Tensor]:
        """Yield augmented training batches of the epochs after the last one, see `TrainingTask`."""
        first = -(-self.total_steps // self.steps_per_epoch) * self.steps_per_epoch
        last = first + max(self.recipe.train.calibration_batches, 1)
        for inputs, _ in training_stream(
            self.data.train_inputs,
            self.data.augment,
            batch_size=self.recipe.train.batch_size,
            seed=self.recipe.seed,
            batches=range(first + share.index, last, share.count),
            workers=self.workers,
        ):
            yield inputs.contiguous(memory_format=torch.channels_last)

    def describe(self) -> dict[str, Any]:
        """See `TrainingTask`."""
        train, test = self.data.train, self.data.test
        return {
            "data": {
                "name": self.recipe.data.name,
                "train_images": len(train),
                "test_images": len(test),
                "left_out": self.left_out,
                "train_sha256": train.digest() if isinstance(train, ArrayImages) else None,
                "test_sha256": test.digest() if isinstance(test, ArrayImages) else None,
            },
            "classes": train.classes,
            "preprocessing": self.data.preprocessing.to_dict(),
        }


def load_classification(recipe: Recipe, device: torch.device, processes: int) -> Classification:
    """Open the images of a recipe and read its initial weights, see `load_task`."""
    return Classification(load_data(resolve_weights(recipe), device, processes))
