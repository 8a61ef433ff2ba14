"""The recipe schema: every setting of a run, with its meaning, unit, default and bounds.

Recipes are written by people, hence the validation by pydantic; builders turn the settings into plain arguments.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from cpt_deploy.recipe.fields import Count, Finite, Fraction, Interval, Name, Settings, matching
from cpt_deploy.recipe.precision import PrecisionSettings, QuantizationSettings
from cpt_deploy.recipe.tasks import AUTO, tasks
from cpt_deploy.registry import nearest_names


class ModelSettings(Settings):
    """The network: `tiny`, `torchvision/resnet18`, `timm/resnet18`, `onnx:FILE`, or your own.

    An ONNX file holds an image classifier with its weights. Your own is a function or class that returns a module, as
    `file.py:factory` or `package.module:factory`.

    `weights` are the initial weights: a local file of float weights (.pth, .pt, .safetensors), or a finished run; a
    last layer with a different number of classes keeps its random initialisation. `weights_sha256` is the required
    digest of that file; a run records it.
    """

    name: Name = "tiny"
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    weights_sha256: Annotated[str, matching(r"[0-9a-f]{64}", "a SHA-256 of 64 hexadecimal digits")] | None = None

    @model_validator(mode="after")
    def _digest_of_weights(self) -> Self:
        if self.weights_sha256 is not None and self.weights is None:
            raise ValueError("Expected weights with weights_sha256, but got none")
        return self


def _size(value: Any) -> Any:
    """Return the height and width of a size such as 64, "224x160" or [224, 160]."""
    if value is None:
        return None
    words = [*value] if isinstance(value, list | tuple) and len(value) == 2 else str(value).lower().split("x")
    if len(words) > 2 or not all(str(word).strip().isdecimal() and int(word) > 0 for word in words):
        raise ValueError(f"Expected a height and width as 64, 224x160 or [224, 160], but got {value!r}")
    return int(words[0]), int(words[-1])


class InputSettings(Settings):
    """How an image becomes the model's input. Settings that are null come from the data set.

    `size` is the height and width in pixels, as 64, 224x160 or [224, 160], `resize` the length of the shorter side
    before the centre crop; `mean` and `std` are per channel, for pixels scaled to 0..1.
    """

    size: Annotated[tuple[Count, Count] | None, BeforeValidator(_size)] = None
    channels: Literal[1, 3] | None = None
    resize: Count | None = None
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    mean: tuple[Finite, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0.0, allow_inf_nan=False)], ...] | None = None

    @model_validator(mode="after")
    def _lengths_agree(self) -> Self:
        channels = self.channels
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if channels is not None and len(values) != channels:
                raise ValueError(f"Expected {name} to have {channels} values, one per channel, but got {len(values)}")
        if self.size is not None and self.resize is not None and self.resize < max(self.size):
            raise ValueError(f"Expected resize to be at least {max(self.size)}, as size is, but got {self.resize}")
        return self


class AugmentStep(BaseModel):
    """One augmentation: its name, and its parameters as further keys; or only its name."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters: all keys but the name."""
        return dict(self.model_extra or {})


class TextSettings(Settings):
    """How text becomes tokens, and how many of them a step reads.

    `level` is the kind of token: a word, a byte, or a byte pair; `vocabulary_size` limits words to the most frequent
    ones (null: all of the training text), or is the number of byte-pair tokens (null: 8000). A step reads `sequence`
    tokens of each row of the batch, and gradients go back through all of them. In evaluation, models without a state
    also read the `context` tokens before them again.
    """

    level: Literal["word", "byte", "bpe"] = "word"
    vocabulary_size: Count | None = None
    sequence: Count = 35
    context: Annotated[int, Field(ge=0)] = 0


class DataSettings(Settings):
    """The images or text, how they become inputs, and how the training images are augmented.

    `name` is a known data set or corpus, a folder, an .npz or text file, or your own as `file.py:factory` or
    `package.module:factory`; `root` is the folder that holds a known one. `task` is decided by it where it is "auto": a
    corpus is for text generation (`text`), images are to be classified (`input`, `augment`). `workers` is the number of
    loading processes, of each process in a distributed run (null: none on a CPU, which they would share with the model,
    and up to eight of the idle cores beside a GPU). Images that have to be decoded are kept in memory after the first
    time if all of them take at most `cache_mb` megabytes (null: a quarter of the machine's memory; 0: never). Neither
    changes the result. `limit` is the number of images of each split that are used, spread evenly over it, or of chunks
    of text, from its beginning (null: all). `skip_bad` decodes all image files first and trains without those that
    cannot be read, where one would otherwise stop the run.
    """

    name: Name = "digits"
    task: str = AUTO
    root: str | None = None
    input: InputSettings = InputSettings()
    augment: tuple[AugmentStep, ...] = ()
    text: TextSettings = TextSettings()
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    cache_mb: Annotated[int, Field(ge=0)] | None = None
    limit: Count | None = None
    skip_bad: bool = False

    @field_validator("task")
    @classmethod
    def _known_task(cls, task: str) -> str:
        if task != AUTO and task not in tasks:
            raise ValueError(f"Expected {AUTO} or a known task, but got {task!r}; {nearest_names(task, tasks.names())}")
        return task


class OptimizerSettings(Settings):
    """The optimizer. `momentum` and `nesterov` apply to sgd, `betas` to adamw.

    `decay_norm_and_bias` applies weight decay to normalisation parameters and biases too.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    nesterov: bool = False
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-4
    decay_norm_and_bias: bool = True

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("Expected momentum to be above 0 with nesterov, but got 0")
        return self


class LearningRateSettings(Settings):
    """The learning-rate schedule; all positions are fractions of the run.

    piecewise: times `gamma` at each of `milestones`. linear and cosine: from `decay_start` to `decay_end` down to
    `final_factor` times the rate, `cycles` times from the start again (SGDR, Loshchilov and Hutter 2017). plateau:
    times `gamma` after each evaluation that is not the best so far. Warm-up takes the first `warmup_steps` steps:
    linear rises from `warmup_factor` times the rate, constant stays there.
    """

    name: Literal["piecewise", "linear", "cosine", "constant", "plateau"] = "cosine"
    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    decay_start: Fraction = 0.0
    decay_end: Fraction = 1.0
    final_factor: Fraction = 0.0
    cycles: Count = 1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    warmup_factor: Fraction = 0.1
    warmup: Literal["linear", "constant"] = "linear"

    @model_validator(mode="after")
    def _positions_in_order(self) -> Self:
        if self.decay_start >= self.decay_end:
            raise ValueError(
                f"Expected decay_start to be below decay_end, but got {self.decay_start}, {self.decay_end}"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"Expected milestones to rise, but got {list(self.milestones)}")
        return self


class SwaSettings(Settings):
    """Stochastic weight averaging: the mean of the weights from `start` on, taken `every` so often and at the end.

    `lr` is the constant learning rate from `start` on; null keeps the schedule.
    """

    enabled: bool = False
    start: Fraction = 0.75
    every: Interval = "1 epoch"
    lr: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None


class TrainSettings(Settings):
    """Length, batches, evaluation, checkpoints and hardware of the run.

    At most one of `epochs` and `steps`; neither means 10 epochs. `eval_every` and `checkpoint_every` are intervals such
    as "1 epoch" or "390 steps"; a bare number means epochs (null: only at the end). `log_every` is in steps (null: 200
    rows in a run, and at least one per 100 steps). `calibration_batches` is the number of training batches that
    calibrate BatchNorm statistics and activation ranges at max_bits after the last step; `final` is the state that is
    calibrated: the last one, or that of the best evaluation. `amp: auto` means bfloat16 autocast on CUDA only, and not
    with scheme sbm. `compute` selects how a CPU trains quantized layers: `float32` and `bf16` run the fused training
    step on integers, with backward products of that type; `modules` runs each module by itself; `auto` uses the fastest
    of them. `cuda_graph` captures a classifier's step as a CUDA graph on one GPU and replays it.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 128
    eval_batch_size: Count = 128
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    grad_clip: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    eval_every: Interval | None = "1 epoch"
    log_every: Count | None = None
    checkpoint_every: Interval | None = "1 epoch"
    amp: Literal["auto", "off", "bf16"] = "auto"
    compute: Literal["auto", "float32", "bf16", "modules"] = "auto"
    device: Annotated[str, matching(r"auto|cpu|cuda(:\d+)?", "auto, cpu, cuda or cuda:N")] = "auto"
    cuda_graph: bool = False
    swa: SwaSettings = SwaSettings()
    calibration_batches: Annotated[int, Field(ge=0)] = 100
    final: Literal["last", "best"] = "last"
    deterministic: bool = True

    @model_validator(mode="before")
    @classmethod
    def _length_given(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("epochs") is None and values.get("steps") is None:
            return {**values, "epochs": 10}
        return values

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"Expected either epochs or steps, but got epochs={self.epochs} and steps={self.steps}")
        if self.final == "best" and self.swa.enabled:
            raise ValueError("Expected final to be last with swa, which averages over steps, but got best")
        if self.swa.enabled and not self.calibration_batches:
            raise ValueError(
                "Expected calibration_batches of at least 1 with swa, whose weights have no statistics yet"
            )
        return self

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the length of the run in steps."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def steps_per_row(self, total_steps: int) -> int:
        """Return the steps between two rows of the log in a run of this length."""
        return self.log_every or min(100, max(1, total_steps // 200))


class Recipe(Settings):
    """All settings of a run; `Recipe()` trains the tiny model on scikit-learn's digits."""

    name: Annotated[
        str, matching(r"[A-Za-z0-9][A-Za-z0-9._-]*", "a name of letters, digits, '.', '_' and '-', without a folder")
    ] = "digits"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    precision: PrecisionSettings = PrecisionSettings()
    quantization: QuantizationSettings = QuantizationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    lr: LearningRateSettings = LearningRateSettings()
    train: TrainSettings = TrainSettings()
