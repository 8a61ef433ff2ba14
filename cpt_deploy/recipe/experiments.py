"""The paper's experiments as recipes, each a network, a data set and a precision, with cost and published figures.

The tables in `presets/paper` define them; a recipe's name is `NETWORK-DATA-PRECISION`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cpt_deploy.precision import BitOpsMeter, LayerCost
from cpt_deploy.recipe.schema import Recipe

_TABLES = Path(__file__).parent / "presets" / "paper"
#: The paper counts the BitOPs of 64,000 batches of 128 samples, also for ImageNet.
PAPER_SAMPLES = 64_000 * 128


@dataclass(frozen=True)
class Figure:
    """A published number.

    Args:
        value: The number: accuracy or gain in points, perplexity, saving in percent, or GBitOPs.
        source: Where it was published, and how exactly it could be read.
    """

    value: float
    source: str


@dataclass(frozen=True)
class ExperimentCost:
    """The cost of an experiment.

    Args:
        steps: Training steps.
        gbitops: 10^9 BitOPs of the run under the recipe; in recipes for images the first and the last layer are fixed
            at max_bits.
        saving: Share that is saved against static training at max_bits, by the same count.
        paper_gbitops: 10^9 BitOPs as the paper counts for images: all convolutions scheduled, 64,000 batches of 128.
            How many tokens it counts for text is not known, so only the saving can be compared.
        paper_saving: The share that is saved by the paper's count.
    """

    steps: int
    gbitops: float
    saving: float
    paper_gbitops: float
    paper_saving: float


@dataclass(frozen=True)
class Experiment:
    """One experiment of the paper: the recipe's settings, the sizes that determine its cost, and published figures.

    Args:
        name: The recipe's name.
        network: The network's name in the table.
        data: The data set's name in the table.
        precision: The precision's name in the table.
        values: The recipe's settings.
        layers: Multiply-accumulates per sample (an image or a token) of the first layer, the layers between, and the
            last layer.
        epoch_steps: Steps per epoch.
        step_samples: Samples per step.
        baseline: The static run to compare with; None for a static run.
        figures: The published figures by name: "top1", "gain", "perplexity", "saving", "gbitops".
        note: A remark for users, if there is one.
        table: The file that defines it.
    """

    name: str
    network: str
    data: str
    precision: str
    values: Mapping[str, Any]
    layers: tuple[int, int, int]
    epoch_steps: int
    step_samples: int
    baseline: str | None
    figures: Mapping[str, Figure]
    note: str | None
    table: Path

    def recipe(self) -> Recipe:
        """Return the recipe."""
        return Recipe.model_validate(self.values)

    def cost(self) -> ExperimentCost:
        """Count the BitOPs of the run, both under the recipe and as the paper counts."""
        recipe = self.recipe()
        precision = recipe.precision
        forward, backward = precision.forward_schedule(), precision.backward_schedule()
        steps = recipe.train.total_steps(self.epoch_steps)
        first, between, last = self.layers
        ends = [LayerCost("first", first, precision.ends), LayerCost("last", last, precision.ends)]
        meter = BitOpsMeter([*ends, LayerCost("between", between, "scheduled")], precision.max_bits)
        run = meter.add_run(forward, backward, steps, self.step_samples)
        per_step = PAPER_SAMPLES // 64_000
        paper = BitOpsMeter([LayerCost("convolutions", first + between, "scheduled")], precision.max_bits)
        counted = paper.add_run(forward, backward, 64_000, per_step)
        return ExperimentCost(steps, run.total / 1e9, run.saving, counted.total / 1e9, counted.saving)


@cache
def experiments() -> Mapping[str, Experiment]:
    """Return all experiments by name, in the order of the tables."""
    found: dict[str, Experiment] = {}
    for path in sorted(_TABLES.glob("*.yaml")):
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
        for network in table["networks"]:
            for data in _those_of(network, table["data"]):
                for precision in _those_of(network, table["precisions"]):
                    experiment = _compose(path, table, network, data, precision)
                    found[experiment.name] = experiment
    return found


def _those_of(network: str, entries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the data sets or precisions of a network: those that list it, and those that list no networks."""
    return [name for name, entry in entries.items() if network in entry.get("networks", (network,))]


def _compose(path: Path, table: Mapping[str, Any], network: str, data: str, precision: str) -> Experiment:
    layers, source, bits = table["networks"][network], table["data"][data], table["precisions"][precision]
    prefix = f"{network}-{data}-"
    own = {
        "name": prefix + precision,
        "model": {"name": layers["name"]},
        "data": {"name": source["name"]},
        "precision": {
            "schedule": bits.get("schedule", "cosine"),
            "min_bits": bits["min_bits"],
            "max_bits": bits["max_bits"],
            "grad_min_bits": bits["grad"],
            "grad_max_bits": bits["grad"],
        },
    }
    values = _merged(_merged(own, table["recipe"]), layers.get("settings", {}))
    batch = values["train"]["batch_size"]
    figures = _figures(table, network, data, precision)
    if "saving" in bits:
        figures["saving"] = Figure(float(bits["saving"]), "printed in the plot")
    return Experiment(
        name=prefix + precision,
        network=network,
        data=data,
        precision=precision,
        values=values,
        layers=(layers.get("first", 0), layers["between"], layers.get("features", 0) * source.get("classes", 0)),
        epoch_steps=source["epoch_steps"] if "epoch_steps" in source else source["images"] // batch,
        step_samples=source.get("step_samples", batch),
        baseline=prefix + bits["baseline"] if "baseline" in bits else None,
        figures=figures,
        note=bits.get("note"),
        table=path,
    )


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings section by section; those of `above` override those of `below`."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
        merged[key] = _merged(below[key], value) if both else value
    return merged


def _figures(table: Mapping[str, Any], network: str, data: str, precision: str) -> dict[str, Figure]:
    return {
        figures["figure"]: Figure(float(value), figures["source"])
        for figures in table["figures"]
        if figures["data"] == data
        for column, value in zip(figures["columns"], figures.get(network, ()), strict=False)
        if column == precision
    }
