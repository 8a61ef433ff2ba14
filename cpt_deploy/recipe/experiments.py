"""The paper's experiments as recipes: composed of network, data set and precision, with cost and published figures.

The tables in `presets/paper` say what there is; a recipe's name is `NETWORK-DATA-PRECISION`.
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
#: The paper's BitOPs, those of ImageNet too, are those of 64,000 batches of 128 samples.
PAPER_SAMPLES = 64_000 * 128


@dataclass(frozen=True)
class Figure:
    """A published number.

    Args:
        value: The number: accuracy or gain in points, perplexity, saving in percent, or GBitOPs.
        source: Where it stands, and how surely.
    """

    value: float
    source: str


@dataclass(frozen=True)
class ExperimentCost:
    """What an experiment costs.

    Args:
        steps: Training steps.
        gbitops: 10^9 BitOPs of the run as the recipe has it; those for images let the first and the last layer hold the
            upper bound.
        saving: Share that is saved against static training at the upper bound, likewise.
        paper_gbitops: 10^9 BitOPs as the paper counts for images: all convolutions cycle, 64,000 batches of 128. How
            many tokens it counts for language models is not known, so only the saving can be compared.
        paper_saving: The share that is saved by that count.
    """

    steps: int
    gbitops: float
    saving: float
    paper_gbitops: float
    paper_saving: float


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Args:
        name: The recipe's name.
        network: The network's name in the table.
        data: The data set's.
        precision: The precision's.
        values: The recipe's settings.
        layers: Multiply-accumulates per sample, an image or a token: of the first layer, of those between, and of the
            last.
        epoch_steps: Steps of an epoch.
        step_samples: Samples of a step.
        baseline: The static run to compare with; None for such a run itself.
        figures: What is published: "top1", "gain", "perplexity", "saving", "gbitops".
        note: What else there is to know.
        table: The file that it is composed from.
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
        """Count the BitOPs of the run, and those by the paper's count."""
        recipe = self.recipe()
        precision = recipe.precision
        forward, backward = precision.forward_schedule(), precision.backward_schedule()
        steps = recipe.train.total_steps(self.epoch_steps)
        first, between, last = self.layers
        ends = [LayerCost("first", first, precision.ends), LayerCost("last", last, precision.ends)]
        meter = BitOpsMeter([*ends, LayerCost("between", between, "cycle")], precision.upper)
        run = meter.add_run(forward, backward, steps, self.step_samples)
        per_step = PAPER_SAMPLES // 64_000
        paper = BitOpsMeter([LayerCost("convolutions", first + between, "cycle")], precision.upper)
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
    """Return the data sets or precisions that a network has: all that do not say whose they are, and its own."""
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
            "lower": bits["lower"],
            "upper": bits["upper"],
            "grad_lower": bits["grad"],
            "grad_upper": bits["grad"],
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
    """Return settings, section by section, with those of `above` over those of `below`."""
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
