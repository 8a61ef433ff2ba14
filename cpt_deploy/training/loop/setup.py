"""Build the objects of a run from its recipe: images, model, optimizer, schedules, cost meter."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from cpt_deploy import preparation, quantization
from cpt_deploy.bundle import Preprocessing
from cpt_deploy.data import (
    Augmentation,
    FittedImages,
    ImageSet,
    batches_per_epoch,
    build_augmentations,
    datasets,
    default_preprocessing,
    input_settings,
    recipe_images,
    resolve_preprocessing,
)
from cpt_deploy.errors import UsageError
from cpt_deploy.models import build_model
from cpt_deploy.precision import (
    BitOpsMeter,
    DelayedSchedule,
    LayerCost,
    PrecisionSchedule,
    quantized_steps,
    share_of_steps,
)
from cpt_deploy.quantization import (
    LayerGroup,
    QuantizationConfig,
    QuantizedModel,
)
from cpt_deploy.quantization.graph.signature import DynamicShapes, ExampleInputs, States
from cpt_deploy.quantization.kernels import active
from cpt_deploy.quantization.training_step.products import choose_compute
from cpt_deploy.recipe import Recipe
from cpt_deploy.training.loop.optimizers import build_optimizer

MAX_WORKERS = 8
"""Max number of loading processes by default."""


@dataclass(frozen=True)
class RunData:
    """The images of a run.

    Args:
        recipe: The settings, with all defaults that depend on the data resolved.
        train: Training images.
        test: Test images.
        preprocessing: How an image becomes an input.
        augment: Augmentations in their order.
        train_inputs: Training images at the size of the input, kept in memory if they fit the budget.
        test_inputs: Test images likewise.
        workers: Number of loading processes.
    """

    recipe: Recipe
    train: ImageSet
    test: ImageSet
    preprocessing: Preprocessing
    augment: tuple[Augmentation, ...]
    train_inputs: FittedImages
    test_inputs: FittedImages
    workers: int

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches per epoch."""
        return batches_per_epoch(len(self.train), self.recipe.train.batch_size)

    @property
    def total_steps(self) -> int:
        """Number of steps of the run."""
        return self.recipe.train.total_steps(self.steps_per_epoch)


@dataclass(frozen=True)
class RunObjects:
    """Model, optimizer, schedules and cost meter of a run.

    Args:
        device: Device of the model.
        model: The CPT model in training.
        optimizer: Its optimizer.
        averaged: The running average of the weights, if the recipe asks for one.
        forward: Precision schedule of weights and activations.
        backward: Precision schedule of gradients.
        meter: BitOPs so far.
        groups: Precision schedules of groups of layers, by the groups' names in the model.
    """

    device: torch.device
    model: QuantizedModel
    optimizer: torch.optim.Optimizer
    averaged: AveragedModel | None
    forward: PrecisionSchedule
    backward: PrecisionSchedule
    meter: BitOpsMeter
    groups: Mapping[str, PrecisionSchedule] = field(default_factory=dict)

    @property
    def schedules(self) -> list[PrecisionSchedule]:
        """All schedules of the run."""
        return [self.forward, self.backward, *self.groups.values()]

    def group_bits(self, step: int, total_steps: int) -> dict[str, int]:
        """Return the forward bits of each group at a step."""
        return {name: schedule.bits_at(step, total_steps) for name, schedule in self.groups.items()}

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def layers_by_group(self) -> dict[str, int]:
        """Number of quantized layers by group."""
        return dict(Counter(layer.group for layer in self.model.layers()))


def load_data(recipe: Recipe, device: torch.device, processes: int = 1) -> RunData:
    """Open the data set and resolve the settings that depend on it.

    Args:
        recipe: The settings.
        device: Device of the model.
        processes: Number of processes of the run that share this machine's cores and memory.

    Raises:
        CptError: If the data set is unknown, missing or damaged, or settings do not fit it.
    """
    settings = recipe.data
    name = settings.name
    if name not in datasets.names() and ":" not in name and Path(name).exists():
        name = str(Path(name).resolve())  # so that the run can be read from other working directories
    root = None if settings.root is None else Path(settings.root).expanduser().resolve()
    settings = settings.model_copy(update={"name": name, "root": None if root is None else str(root)})
    train, test = recipe_images(settings, "train"), recipe_images(settings, "test")
    if train.classes != test.classes:
        raise UsageError(
            f"Expected the same classes in both splits of {name}, "
            f"but got {len(train.classes)} and {len(test.classes)} that differ",
            hint="name all classes: classes.txt beside .npz files, or `classes` of your own data set",
        )
    preprocessing = resolve_preprocessing(settings.input, default_preprocessing(train))
    steps = [(step.name, step.parameters) for step in settings.augment]
    augment = tuple(build_augmentations(steps, preprocessing.size))
    resolved = settings.model_copy(update={"input": input_settings(preprocessing)})
    budget = _memory_to_keep(settings.cache_mb) // processes
    train_inputs = FittedImages(train, preprocessing, 0 if any(step.sizes for step in augment) else budget)
    test_inputs = FittedImages(test, preprocessing, budget - (train_inputs.bytes_kept if train_inputs.is_kept else 0))
    return RunData(
        recipe.model_copy(update={"data": resolved}),
        train,
        test,
        preprocessing,
        augment,
        train_inputs,
        test_inputs,
        _loading_processes(device, processes) if settings.workers is None else settings.workers,
    )


def _loading_processes(device: torch.device, processes: int) -> int:
    """Return the default number of loading processes."""
    if device.type != "cuda":
        return 0
    return min((os.cpu_count() or 1) // processes, MAX_WORKERS)


def _memory_to_keep(megabytes: int | None) -> int:
    """Return the budget for decoded images in bytes; by default a quarter of the machine's memory."""
    if megabytes is not None:
        return megabytes * 10**6
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def build_cpt_model(
    recipe: Recipe, classes: int, preprocessing: Preprocessing, *, trained: bool = False
) -> QuantizedModel:
    """Build and prepare the model of a recipe, with fresh weights, on the CPU.

    Args:
        recipe: The settings.
        classes: Number of classes.
        preprocessing: How an image becomes an input.
        trained: Whether it will get the weights of a run; then the trial conversion, made before that run, is skipped.

    Raises:
        CptError: If the model is unknown, cannot take these images, or has no quantized form.
    """
    network = build_network(recipe, classes, preprocessing)
    return prepare_network(network, recipe, torch.zeros(2, *preprocessing.input_shape), trained=trained)


def build_network(recipe: Recipe, classes: int, preprocessing: Preprocessing) -> nn.Module:
    """Build the float network of a recipe, with fresh weights, on the CPU.

    Raises:
        CptError: If the model is unknown or cannot take these images.
    """
    return build_model(
        recipe.model.name,
        num_classes=classes,
        in_channels=preprocessing.channels,
        input_size=preprocessing.size,
        **recipe.model.args,
    )


def prepare_network(
    network: nn.Module,
    recipe: Recipe,
    example_inputs: ExampleInputs,
    *,
    trained: bool = False,
    dynamic_shapes: DynamicShapes = None,
    states: States = None,
) -> QuantizedModel:
    """Prepare the float network of a recipe for training, with its weights.

    Args:
        network: The network.
        recipe: The settings.
        example_inputs: Inputs of two or more samples, see `prepare`.
        trained: Whether it will get the weights of a run; then the trial conversion, made before that run, is skipped.
        dynamic_shapes: See `prepare`.
        states: See `prepare`.

    Raises:
        CptError: If it has no quantized form.
    """
    precision = recipe.precision
    config = QuantizationConfig(
        min_bits=precision.bounds[0],
        max_bits=precision.max_bits,
        ends=precision.ends,
        range_momentum=precision.range_momentum,
        seed=recipe.seed,
        groups=tuple(
            LayerGroup(f"group{number}", group.match, precision.bounds_of(group)[1])
            for number, group in enumerate(precision.groups, start=1)
        ),
        include=precision.include,
        exclude=precision.exclude,
        scheme=recipe.quantization.scheme,
    )
    convert = quantization.prepare if trained else preparation.prepare
    prepared = convert(network, example_inputs, config, dynamic_shapes=dynamic_shapes, states=states)
    prepared.compute = recipe.train.compute
    return prepared


def build_objects(model: QuantizedModel, recipe: Recipe, total_steps: int, device: torch.device) -> RunObjects:
    """Move the model to the device and build optimizer, schedules and cost meter of a run.

    Args:
        model: The model.
        recipe: The settings.
        total_steps: Number of steps of the run.
        device: Device of the run.

    Raises:
        CptError: If a schedule does not exist or does not fit, or the device cannot compute as `train.compute` asks.
    """
    choose_compute(recipe.train.compute, native=active(device.type).native, device=device.type)
    model = model.to(device)
    model = model.to(memory_format=torch.channels_last)  # the faster layout of convolutions
    optimizer = build_optimizer(model, recipe.optimizer)
    averaged = AveragedModel(model) if recipe.train.swa.enabled else None
    forward, backward = recipe.precision.forward_schedule(), recipe.precision.backward_schedule()
    _check_bits(forward, *recipe.precision.bounds, total_steps)
    try:
        _check_bits(backward, recipe.precision.grad_min_bits, recipe.precision.grad_max_bits, total_steps)
    except UsageError as error:
        hint = error.hint
        if hint is not None and recipe.precision.grad_cycles is not None:
            hint = hint.replace("precision.cycles", "precision.grad_cycles")
        raise UsageError(f"gradients: {error.message}", hint=hint) from error
    groups = recipe.precision.group_schedules()
    for settings, schedule in zip(recipe.precision.groups, groups.values(), strict=True):
        _check_bits(schedule, *recipe.precision.bounds_of(settings), total_steps)
    costs = [LayerCost(layer.name, layer.macs, layer.group) for layer in (*model.layers(), *model.float_layers)]
    meter = BitOpsMeter(costs, recipe.precision.max_bits, model.precision.groups, recipe.precision.grad_max_bits)
    return RunObjects(device, model, optimizer, averaged, forward, backward, meter, groups)


def _check_bits(schedule: PrecisionSchedule, min_bits: int, max_bits: int, total_steps: int) -> None:
    """Make sure that a schedule, which may be user-defined, stays within min_bits and max_bits of the recipe."""
    if isinstance(schedule, DelayedSchedule):
        total_steps = quantized_steps(schedule.delay, total_steps)
        schedule = schedule.schedule
    bits = share_of_steps(schedule, total_steps)
    other = next((each for each in bits if type(each) is not int), None)
    if other is not None:
        raise UsageError(f"Expected a precision schedule that returns bits as int, but got {type(other).__name__}")
    if min(bits) < min_bits or max(bits) > max_bits:
        raise UsageError(
            f"Expected a precision schedule within {min_bits}..{max_bits} bits, but got {min(bits)}..{max(bits)}"
        )
