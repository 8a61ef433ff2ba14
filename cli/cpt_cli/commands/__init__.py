"""The commands of `cpt`, one per file; those that check, run and serve a bundle lie directly in this folder."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpt_cli.command import Command

_TRAIN = "Train and export"
_SHIP = "Check and serve"
_LOOK = "Look around"


@dataclass(frozen=True)
class Listed:
    """A command as `cpt --help` lists it, without importing its module.

    Args:
        module: Its module below this package, named after the verb.
        panel: The heading under which it is listed.
        summary: The first sentence of its own help.
    """

    module: str
    panel: str
    summary: str

    @property
    def name(self) -> str:
        """The verb."""
        return self.module.rpartition(".")[2].replace("_", "-")

    def load(self) -> "Command":
        """Import the command's module and return its definition."""
        command: Command = import_module(f"{__name__}.{self.module}").COMMAND
        return command


COMMANDS: tuple[Listed, ...] = (  # in the order of `cpt --help`
    Listed(
        "training.quickstart",
        _TRAIN,
        "Train, export, validate, serve and predict once, on scikit-learn's handwritten digits.",
    ),
    Listed("training.range_test", _TRAIN, "Find the minimum bits at which a network trains: min_bits of its schedule."),
    Listed(
        "training.train",
        _TRAIN,
        "Train a network with Cyclic Precision Training and write all results to one directory.",
    ),
    Listed("training.train_grid", _TRAIN, "Train a grid of experiments: recipes, variants, values of settings, seeds."),
    Listed(
        "training.compare",
        _TRAIN,
        "Compare finished runs: the metric of their task, its spread over seeds, BitOPs, and time.",
    ),
    Listed("training.landscape", _TRAIN, "Draw the loss around the minima of finished runs, side by side."),
    Listed("training.sharpness", _TRAIN, "Measure the sharpness of the minima of finished runs."),
    Listed(
        "training.export",
        _TRAIN,
        "Freeze the trained model of a run to integers and write a bundle: the directory that ships.",
    ),
    Listed(
        "training.sweep",
        _TRAIN,
        "Export a run at several bits, validate each bundle on the whole test set, and time them all in onnxruntime.",
    ),
    Listed(
        "inspect",
        _SHIP,
        "Show what onnxruntime makes of a model on this processor: what runs on integers, what stays in float and why.",
    ),
    Listed(
        "validate",
        _SHIP,
        "Measure a bundle before it is served: metric and integers of trained model, executor and onnxruntime.",
    ),
    Listed(
        "sign",
        _SHIP,
        "Sign all files of a bundle, including its evidence, so that nobody without the key can change one unnoticed.",
    ),
    Listed(
        "verify",
        _SHIP,
        "Check that a bundle is unchanged since it was signed: no file changed, added or removed. If not, exit code 4.",
    ),
    Listed(
        "benchmark",
        _SHIP,
        "Compare a bundle with the float32 export of its network and with onnxruntime's static quantization of that.",
    ),
    Listed(
        "predict",
        _SHIP,
        "Predict images or rows of tensors: show the most probable classes with probabilities, or the outputs by name.",
    ),
    Listed("generate", _SHIP, "Continue a text, token by token."),
    Listed(
        "serve",
        _SHIP,
        "Serve models over HTTP until SIGTERM or Ctrl-C: /predict, health, metrics, the Open Inference Protocol v2.",
    ),
    Listed("api_key", _SHIP, "Create an API key and append its SHA-256 to a file. The key itself is shown only once."),
    Listed(
        "listing.recipes",
        _LOOK,
        "List the recipes that come with the package: the paper's experiments, and a few to start with.",
    ),
    Listed(
        "listing.models",
        _LOOK,
        "List models that `cpt train` knows, with parameters and multiply-accumulates (MACs) per image or token.",
    ),
    Listed("listing.datasets", _LOOK, "List the known data sets and texts, and which of them are on this machine."),
    Listed(
        "listing.schedules",
        _LOOK,
        "Show precision schedules: their bits over a run, their mean, and the BitOPs they save against static bits.",
    ),
    Listed(
        "listing.info",
        _LOOK,
        "Show versions, the processor and its integer instructions, and the device that training would use.",
    ),
)

__all__ = ["COMMANDS", "Listed"]
