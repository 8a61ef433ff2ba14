"""The precision range test of two networks on Fashion-MNIST: the minimum bits at which training accuracy rises.

All precisions up to max_bits are tried, not only those up to the first that trains, to show the whole curve; min_bits
is the first one that trains either way.

    CPT_DATA_DIR=… python benchmarks/range_tests.py [--models resnet20 mobilenetv2] [--steps 100] [--seeds 0]
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import machine, machine_line, markdown_table, measures_all, write_results

from cpt_deploy.recipe import load_recipe
from cpt_deploy.report import plot_range_test
from cpt_deploy.training import range_test

IMAGES = Path(__file__).parent.parent / "docs" / "images"
BATCH_SIZES = {"resnet20": 64, "mobilenetv2": 32}
PRESET_BATCH = 128
"""Batch size of the preset's learning rate; for smaller batches the rate is reduced in proportion."""


def tested(model: str, seed: int, steps: int) -> dict[str, Any]:
    """Run the test of one network with the preset's other settings and return its result."""
    overrides = [f"model.name={model}", f"train.batch_size={BATCH_SIZES[model]}", f"seed={seed}", "train.device=cpu"]
    rate = load_recipe("fashion-mnist-resnet20").optimizer.lr * BATCH_SIZES[model] / PRESET_BATCH
    recipe = load_recipe("fashion-mnist-resnet20", [*overrides, f"optimizer.lr={rate}"])
    began = time.process_time()

    def tell(done: int, total: int, accuracy: float) -> None:
        if done % steps == 0:
            print(f"{model}, seed {seed}: {done} of {total} steps, {accuracy:.0%}", file=sys.stderr, flush=True)

    outcome = range_test(recipe, steps=steps, to_max_bits=True, on_step=tell)
    return {
        "model": model,
        "seed": seed,
        "batch_size": BATCH_SIZES[model],
        "processor_seconds": round(time.process_time() - began, 1),
        **outcome.to_dict(),
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the rises of all networks as a table; min_bits is in bold."""
    results = content["results"]
    bits = [entry["bits"] for entry in results[0]["precisions"]]
    rows = []
    for result in results:
        cells = []
        for entry in result["precisions"]:
            figures = f"{100 * entry['rise']:+.1f} ± {100 * entry['standard_error']:.1f}"
            cell = "diverged" if entry["diverged"] else figures
            cells.append(f"**{cell}**" if entry["bits"] == result["min_bits"] else cell)
        min_bits = "none" if result["min_bits"] is None else f"{result['min_bits']} bits"
        rows.append([result["model"], str(result["batch_size"]), str(result["seed"]), *cells, min_bits])
    header = ["network", "batch", "seed", *(f"{count} bits" for count in bits), "min_bits"]
    title = (
        f"Precision range test on Fashion-MNIST, {content['steps']} steps at each precision: rise of the training "
        "accuracy in points ± standard error; bold: the first rise beyond threshold and chance "
        "(`python benchmarks/range_tests.py`)"
    )
    return f"{title}\n\n{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"


def main() -> None:
    """Test the networks, draw each curve, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(BATCH_SIZES), choices=list(BATCH_SIZES))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    results = [tested(model, seed, arguments.steps) for model in arguments.models for seed in arguments.seeds]
    whole = measures_all(parser, arguments, "models", "seeds")
    for result in results if whole else ():
        title = f"Precision range test of {result['model']} on Fashion-MNIST"
        plot_range_test(result, IMAGES / f"range-test-{result['model']}.png", title=title)
    content = {"machine": machine(), "steps": arguments.steps, "results": results}
    write_results("range_tests", content, table(content), whole=whole)


if __name__ == "__main__":
    main()
