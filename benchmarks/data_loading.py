"""Speed of loading batches, compared with the speed of training on them.

For Fashion-MNIST (in memory) and an image folder (JPEG files) one process measures in turn, in each round, images/s of
the loader in its first epoch, with decoded images kept, and with one loading process; and of training steps of
ResNet-20, per second of processor time, because other work on the machine would make a step seem slower. Results are
medians over the rounds.

    CPT_DATA_DIR=… python benchmarks/data_loading.py [--rounds 3] [--batches 20] [--steps 4]
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from measuring import machine, machine_line, markdown_table, write_results
from torch.nn import functional

from cpt_deploy.data import FittedImages, build_augmentations, load_images, training_stream
from cpt_deploy.recipe import load_recipe
from cpt_deploy.training.loop.setup import build_cpt_model, build_objects, load_data

CPU = torch.device("cpu")
CROP, FLIP = ("random_crop", {"padding": 4}), ("hflip", {})
CASES = {
    "Fashion-MNIST, crop and flip": ("fashion-mnist", (CROP, FLIP)),
    "image folder of 64 pixels, crop and flip": ("tiny-imagenet-10", (CROP, FLIP)),
    "image folder of 64 pixels, crop of random size, flip": ("tiny-imagenet-10", (("random_resized_crop", {}), FLIP)),
    "image folder of 64 pixels, crop, flip, color jitter": (
        "tiny-imagenet-10", (CROP, FLIP, ("color_jitter", {})),
    ),
}  # fmt: skip
BATCH = 128
COLUMNS = {
    "decoding": "decoded each time",
    "kept": "kept decoded",
    "1 worker": "kept, 1 worker",
    "training": "ResNet-20 trains, processor time",
}


def loading_rate(images: FittedImages, augment: tuple[object, ...], batches: range, workers: int = 0) -> float:
    """Return images/s of a loader, without its start-up."""
    steps = build_augmentations(augment, images.preprocessing.size)
    stream = training_stream(images, steps, batch_size=BATCH, seed=0, batches=batches, workers=workers)
    next(stream)
    began = time.perf_counter()
    loaded = sum(len(labels) for _, labels in stream)
    return loaded / (time.perf_counter() - began)


def training_step(name: str) -> Callable[[], None]:
    """Return a training step of ResNet-20 at 8 bits on a batch with images of the data set's size."""
    recipe = load_recipe(
        "fashion-mnist-resnet20", [f"data.name={name}", f"train.batch_size={BATCH}", "data.augment=[]"]
    )
    data = load_data(recipe, CPU)
    objects = build_objects(
        build_cpt_model(recipe, len(data.train.classes), data.preprocessing), recipe, data.total_steps, CPU
    )
    inputs = torch.randn(BATCH, *data.preprocessing.input_shape).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % len(data.train.classes)

    numbers = itertools.count()

    def step() -> None:
        objects.model.set_step(next(numbers))
        objects.optimizer.zero_grad()
        functional.cross_entropy(objects.model(inputs), labels).backward()
        objects.optimizer.step()

    return step


def measure(name: str, augment: tuple[object, ...], rounds: int, batches: int, steps: int) -> dict[str, list[float]]:
    """Return images/s of each round, by column."""
    train = load_images(name, split="train")
    preprocessing = load_data(load_recipe("fashion-mnist-resnet20", [f"data.name={name}"]), CPU).preprocessing
    whole = range(len(train) // BATCH)
    step = training_step(name)
    step()
    rates: dict[str, list[float]] = {column: [] for column in COLUMNS}
    kept = FittedImages(
        train, preprocessing, 0 if any(entry[0] == "random_resized_crop" for entry in augment) else 10**9
    )
    if kept.is_kept:
        loading_rate(kept, augment, whole)  # fills the cache
    for _ in range(rounds):
        rates["decoding"].append(loading_rate(FittedImages(train, preprocessing), augment, range(batches + 1)))
        rates["kept"].append(loading_rate(kept, augment, range(batches + 1)))
        rates["1 worker"].append(loading_rate(kept, augment, range(batches + 1), workers=1))
        began = time.process_time()
        for _ in range(steps):
            step()
        rates["training"].append(steps * BATCH / (time.process_time() - began))
    return rates


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per data set and augmentation, with the columns that were measured."""
    rates = content["images_per_s"]
    columns = [column for column in COLUMNS if all(column in found for found in rates.values())]
    rows = [
        [title, *(f"{statistics.median(found[column]):,.0f}" for column in columns)] for title, found in rates.items()
    ]
    return (
        f"Images/s with one thread, batches of {BATCH}, medians of {content['settings']['rounds']} rounds (`python "
        "benchmarks/data_loading.py`)\n\n"
        f"{markdown_table(['images', *(COLUMNS[column] for column in columns)], rows)}\n\n"
        f"{machine_line(content['machine'])}"
    )


def main() -> None:
    """Measure all sets and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {
        title: measure(name, augment, options.rounds, options.batches, options.steps)
        for title, (name, augment) in CASES.items()
    }
    content = {"machine": machine(), "settings": vars(options), "images_per_s": results}
    write_results("data_loading", content, table(content))


if __name__ == "__main__":
    main()
