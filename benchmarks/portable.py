"""Accuracy lost by portable weights: trained networks frozen portable and native, on the same test samples.

The native form is calibrated twice, on different training batches, so that the table also shows the difference due to
chance alone. Images: accuracy in onnxruntime and McNemar's exact test on paired answers. Text: the mean difference of
the tokens' losses, with its standard error. Finished runs are kept.

    CPT_DATA_DIR=… OMP_NUM_THREADS=1 python benchmarks/portable.py [--runs runs/portable]
"""

import argparse
import copy
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine, machine_line, markdown_table, measures_all, write_results
from numpy.typing import NDArray
from torch import Tensor

from cpt_deploy.bundle import ImageProcessor, OnnxRuntimeModel, TextProcessor
from cpt_deploy.data import ImageSet, eval_loader, load_images
from cpt_deploy.data.text import evaluation_chunks, load_corpus, training_chunk, training_rows
from cpt_deploy.data.text.streams import IGNORED
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import freeze
from cpt_deploy.quantization import (
    QuantizedModel,
    calibrate,
    make_native,
    reduced_layers,
)
from cpt_deploy.quantization.stateful import State
from cpt_deploy.recipe import load_recipe
from cpt_deploy.tasks.text_generation.evaluation import scores_of, token_losses
from cpt_deploy.training import (
    TrainedRun,
    load_run,
    train,
)
from cpt_deploy.training.task import load_task
from cpt_deploy.validation import mcnemar_exact
from cpt_deploy.validation.accuracy.noninferiority import tango_interval

SHORT = ("precision.min_bits=3", "train.epochs=null", "lr.warmup_steps=20", "train.calibration_batches=20")
SMALL_CIFAR = ("data.name=cifar10-jpeg", "data.input.size=[16,16]")
MOBILENET = ("model.name=mobilenetv2", "train.batch_size=64", "optimizer.lr=0.05")
IMAGES = {
    "digits-tiny": ("digits-quickstart", ()),
    "fashion-resnet8": ("fashion-mnist-resnet20", ("model.name=resnet8", *SHORT, "train.steps=400")),
    "cifar-resnet8": ("fashion-mnist-resnet20", ("model.name=resnet8", *SMALL_CIFAR, *SHORT, "train.steps=1000")),
    "cifar-mobilenetv2": ("fashion-mnist-resnet20", (*MOBILENET, *SMALL_CIFAR, *SHORT, "train.steps=250")),
}
TEXTS = {
    "shakespeare-transformer": ("tinyshakespeare-transformer", ("train.steps=300", "precision.min_bits=4")),
    "ptb-lstm": (
        "ptb-lstm",
        ("model.args.embedding=128", "model.args.hidden=128", "model.args.dropout=0", "train.eval_batch_size=40",
         "train.epochs=null", "train.steps=500", "lr.name=cosine"),
    ),
}  # fmt: skip
KEPT = ("train.eval_every=null", "train.checkpoint_every=null")
CALIBRATION_BATCHES = 40
TEXT_TOKENS = 40_000


def trained(name: str, preset: str, settings: tuple[str, ...], folder: Path) -> Path:
    """Return the directory of a run; train it if it is missing."""
    directory = folder / name
    if not (directory / "report.json").is_file():
        print(f"training {name}", file=sys.stderr, flush=True)
        train(load_recipe(preset, [*settings, *KEPT, f"name={name}"]), directory)
    return directory


def forms(model: Any) -> dict[str, Any]:
    """Return copies of a model: portable, native, and native for calibration on other batches."""
    copies = {name: copy.deepcopy(model).eval() for name in ("portable", "native", "native again")}
    for name in ("native", "native again"):
        make_native(copies[name])
    return copies


def reduced(model: QuantizedModel) -> dict[str, Any]:
    """Return the number of channels with a reduced range in a portable model, and their mean maximum integer."""
    layers = reduced_layers(model)
    return {"channels": sum(layer.reduced_channels for layer in layers), "layers": len(layers)}


def images_result(run: TrainedRun, name: str) -> dict[str, Any]:
    """Measure one network on images in all forms."""
    recipe = run.recipe.model_copy(
        update={"train": run.recipe.train.model_copy(update={"calibration_batches": 2 * CALIBRATION_BATCHES})}
    )
    batches = list(load_task(recipe, torch.device("cpu")).calibration_inputs())
    half = max(len(batches) // 2, 1)
    test = load_images(recipe.data.name, split="test", root=None)
    right: dict[str, NDArray[np.bool_]] = {}
    models = forms(run.model)
    for form, model in models.items():
        calibrate(model, batches[half:] if form == "native again" else batches[:half])
        right[form] = answers(model, run, test)
    return {
        "network": name,
        "samples": len(test),
        "reduced": reduced(models["portable"]),
        "accuracy": {form: float(found.mean()) for form, found in right.items()},
        "portable": paired(right["native"], right["portable"]),
        "chance": paired(right["native"], right["native again"]),
    }


def answers(model: QuantizedModel, run: TrainedRun, test: ImageSet) -> NDArray[np.bool_]:
    """Return which test images onnxruntime classifies correctly with a model's integers."""
    served = OnnxRuntimeModel(write_onnx(freeze(model)))
    found = [
        served.run({"image": inputs.numpy()})["logits"].argmax(axis=1) == labels.numpy()
        for inputs, labels in eval_loader(test, run.expect_processor(ImageProcessor).preprocessing, 250)
    ]
    return np.concatenate(found)


def paired(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the difference in points of accuracy with its 95 % score interval, and McNemar's test."""
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    return {
        "points": 100 * (won - lost) / len(before),
        "interval": [100 * end for end in tango_interval(won, lost, len(before))],
        "lost": lost,
        "won": won,
        "p": mcnemar_exact(lost, won),
    }


def text_result(run: TrainedRun, name: str) -> dict[str, Any]:
    """Measure one language model in all forms, by its losses on the beginning of the test text."""
    corpus = load_corpus(run.recipe.data.name, None)
    tokenizer = run.expect_processor(TextProcessor).tokenizer
    ids = tokenizer.encode(corpus.text("test"))[:TEXT_TOKENS]
    rows = training_rows(tokenizer.encode(corpus.text("train")), run.recipe.train.batch_size)
    models, losses = forms(run.model), {}
    for form, model in models.items():
        first, length = CALIBRATION_BATCHES if form == "native again" else 0, run.recipe.data.text.sequence
        chunks = (training_chunk(rows, length, first + i) for i in range(CALIBRATION_BATCHES))
        calibrate(model, ({"input_ids": chunk.tokens} for chunk in chunks))
        losses[form] = text_losses(model, run, ids)
    differences = {key: losses[form] - losses["native"] for key, form in
                   (("portable", "portable"), ("chance", "native again"))}  # fmt: skip
    return {
        "network": name,
        "samples": len(losses["native"]),
        "reduced": reduced(models["portable"]),
        "perplexity": {form: float(np.exp(found.mean())) for form, found in losses.items()},
        **{
            key: {"loss": float(d.mean()), "error": float(d.std() / math.sqrt(len(d)))}
            for key, d in differences.items()
        },
    }


@torch.no_grad()
def text_losses(model: QuantizedModel, run: TrainedRun, ids: Any) -> NDArray[np.float64]:
    """Return the loss of each token at max_bits, at which fake quantization has the integers of the export."""
    text, found = run.recipe.data.text, []
    state: State | None = None
    with model.at_max_bits():
        for chunk in evaluation_chunks(ids, run.recipe.train.eval_batch_size, text.sequence, text.context):
            scores, state = scores_of(model, model.signature, chunk.tokens, state)
            losses, _ = token_losses(scores, chunk.targets)
            found.append(_flat(losses[chunk.targets.flatten() != IGNORED]))
    return np.concatenate(found)


def _flat(losses: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = losses.double().flatten().numpy()
    return array


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, a row per network."""
    results = content["results"]
    header = ["network", "test", "channels reduced", "native", "portable", "portable against native, 95 % interval",
              "lost / won", "p", "chance: native calibrated on other batches"]  # fmt: skip
    rows = []
    for r in results:
        if "accuracy" in r:
            a, p, c = r["accuracy"], r["portable"], r["chance"]
            rows.append([
                r["network"], f"{r['samples']:,} images", str(r["reduced"]["channels"]),
                f"{100 * a['native']:.2f} %", f"{100 * a['portable']:.2f} %",
                f"{p['points']:+.2f} points ({p['interval'][0]:+.2f} to {p['interval'][1]:+.2f})",
                f"{p['lost']} / {p['won']}", f"{p['p']:.2f}", f"{c['points']:+.2f} points, {c['lost']} / {c['won']}",
            ])  # fmt: skip
        else:
            a, p, c = r["perplexity"], r["portable"], r["chance"]
            low, high = (100 * math.expm1(p["loss"] + sign * 1.96 * p["error"]) for sign in (-1, 1))
            rows.append([
                r["network"], f"{r['samples']:,} tokens", str(r["reduced"]["channels"]),
                f"perplexity {a['native']:.3f}", f"{a['portable']:.3f}",
                f"{100 * math.expm1(p['loss']):+.3f} % ({low:+.3f} to {high:+.3f})", "", "",
                f"{100 * math.expm1(c['loss']):+.3f} %",
            ])  # fmt: skip
    lost, won = (sum(r["portable"][key] for r in results if "accuracy" in r) for key in ("lost", "won"))
    return (
        "What portable weights cost: the same trained networks frozen portable and native, both calibrated on the same "
        f"{CALIBRATION_BATCHES} training batches, on the whole test set of images or the first {TEXT_TOKENS:,} tokens "
        "of the test text (`python benchmarks/portable.py`). Of all "
        f"images together portable models lose {lost} that native ones get right and win {won} (McNemar p = "
        f"{mcnemar_exact(lost, won):.2f}).\n\n{markdown_table(header, rows)}\n\n{machine_line(content['machine'])}"
    )


def main() -> None:
    """Train and measure all networks and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/portable"))
    parser.add_argument("--only", nargs="+", help="names of runs, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name, (preset, settings) in {**IMAGES, **TEXTS}.items():
        if arguments.only is None or name in arguments.only:
            directory = trained(name, preset, settings, arguments.runs)
            results.append(
                text_result(load_run(directory), name) if name in TEXTS else images_result(load_run(directory), name)
            )
            print(results[-1], file=sys.stderr, flush=True)
    content = {"machine": machine(), "results": results}
    write_results("portable", content, table(content), whole=measures_all(parser, arguments, "only"))


if __name__ == "__main__":
    main()
