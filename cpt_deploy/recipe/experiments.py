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
        value: The number: accuracy or gain in points, saving in percent, or GBitOPs.
        source: Where it stands, and how surely.
    """

    value: float
    source: str


@dataclass(frozen=True)
class ExperimentCost:
    """What an experiment costs.

    Args:
        steps: Training steps.
        gbitops: 10^9 BitOPs of the run as the recipe has it; the first and the last layer hold the upper bound.
        saving: Share that is saved against static training at the upper bound, likewise.
        paper_gbitops: 10^9 BitOPs as the paper counts: all convolutions cycle, 64,000 batches of 128 samples.
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
        layers: Multiply-accumulates per sample: of the first layer, of those between, and of the last.
        samples: Training samples of an epoch.
        baseline: The static run to compare with; None for such a run itself.
        figures: What is published: "top1", "gain", "saving", "gbitops".
        note: What else there is to know.
        table: The file that it is composed from.
    """

    name: str
    network: str
    data: str
    precision: str
    values: Mapping[str, Any]
    layers: tuple[int, int, int]
    samples: int
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
        steps = recipe.train.total_steps(self.samples // recipe.train.batch_size)
        first, between, last = self.layers
        ends = [LayerCost("first", first, "hold"), LayerCost("last", last, "hold")]
        meter = BitOpsMeter([*ends, LayerCost("between", between, "cycle")], precision.upper)
        run = meter.add_run(forward, backward, steps, recipe.train.batch_size)
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
            for data in table["data"]:
                for precision in table["precisions"]:
                    experiment = _compose(path, table, network, data, precision)
                    found[experiment.name] = experiment
    return found


def _compose(path: Path, table: Mapping[str, Any], network: str, data: str, precision: str) -> Experiment:
    layers, source, bits = table["networks"][network], table["data"][data], table["precisions"][precision]
    own = {
        "schedule": bits.get("schedule", "cosine"),
        "lower": bits["lower"],
        "upper": bits["upper"],
        "grad_lower": bits["grad"],
        "grad_upper": bits["grad"],
    }
    base, prefix = table["recipe"], f"{network}-{data}-"
    values = {
        "name": prefix + precision,
        "model": {"name": layers["name"]},
        **base,
        "data": {"name": source["name"], **base["data"]},
        "precision": {**base["precision"], **own},
    }
    figures = {
        figures["figure"]: Figure(float(value), figures["source"])
        for figures in table["figures"]
        if figures["data"] == data
        for column, value in zip(figures["columns"], figures.get(network, ()), strict=False)
        if column == precision
    }
    if "saving" in bits:
        figures["saving"] = Figure(float(bits["saving"]), "printed in the plot")
    return Experiment(
        name=prefix + precision,
        network=network,
        data=data,
        precision=precision,
        values=values,
        layers=(layers["first"], layers["between"], layers["features"] * source["classes"]),
        samples=source["images"],
        baseline=prefix + bits["baseline"] if "baseline" in bits else None,
        figures=figures,
        note=bits.get("note"),
        table=path,
    )
