"""Every experiment of the paper takes a step with its real network on data in the real layout; some have a whole run.

The data are small sets that are written here in the layouts of CIFAR and ImageNet; where $CPT_DATA_DIR has photographs
in these layouts, those are used.
"""

import hashlib
import math
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100

from cpt_cli.main import main
from cpt_deploy.data import training_stream
from cpt_deploy.models import describe_model
from cpt_deploy.models.language import describe_language_model
from cpt_deploy.recipe import experiments, load_recipe, smoke_recipe
from cpt_deploy.training import RunReport
from cpt_deploy.training.distributed.process_group import ProcessGroup
from cpt_deploy.training.loop.setup import build_cpt_model, load_data
from cpt_deploy.training.task import load_task

IMAGES = {name: entry for name, entry in experiments().items() if entry.data in ("cifar10", "cifar100", "imagenet")}
TEXT = {name: entry for name, entry in experiments().items() if name not in IMAGES}
NETWORKS = list(dict.fromkeys(experiment.network for experiment in IMAGES.values()))
#: Whole runs: the smallest and the deepest network of CIFAR, those of other blocks, and bits up to float.
WHOLE_RUNS = (
    "resnet38-cifar10-cpt3-8",
    "resnet164-cifar100-static6",
    "mobilenetv2-cifar100-cpt3-6",
    "resnet18-imagenet-cpt8-32",
    "resnet50-imagenet-cpt4-6",
)


def write_cifar(folder: Path, reader: type, classes: int, patch: pytest.MonkeyPatch) -> None:
    """Write a data set in the original layout of CIFAR, whose checksums are the expected ones."""
    generator = np.random.default_rng(classes)
    key = "labels" if classes == 10 else "fine_labels"
    names = [f"class{index}" for index in range(classes)]
    contents = {reader.meta["filename"]: {reader.meta["key"]: names}}
    for name, _ in [*reader.train_list, *reader.test_list]:
        data = generator.integers(256, size=(4, 3072), dtype=np.uint8)
        contents[name] = {"data": data, key: [int(label) for label in generator.integers(classes, size=4)]}
    sums = {}
    (folder / reader.base_folder).mkdir(parents=True)
    for name, content in contents.items():
        raw = pickle.dumps(content, protocol=2)
        (folder / reader.base_folder / name).write_bytes(raw)
        sums[name] = hashlib.md5(raw, usedforsecurity=False).hexdigest()
    for listed in ("train_list", "test_list"):
        patch.setattr(reader, listed, [[name, sums[name]] for name, _ in getattr(reader, listed)])
    patch.setattr(reader, "meta", {**reader.meta, "md5": sums[reader.meta["filename"]]})


def write_imagenet(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for wordnet_id in ("n01443537", "n02123045", "n02281406"):
            (folder / split / wordnet_id).mkdir(parents=True)
            for number in range(2):
                pixels = generator.integers(256, size=(40 + number, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / wordnet_id / f"{wordnet_id}_{number}.JPEG")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Overrides by data set that name a set in its layout."""
    root = tmp_path_factory.mktemp("data")
    real = Path(os.environ.get("CPT_DATA_DIR", str(root))) / "tiny-imagenet-10"
    if not real.is_dir():
        write_imagenet(root / "imagenet")
    with pytest.MonkeyPatch.context() as patch:
        write_cifar(root / "cifar10", CIFAR10, 10, patch)
        write_cifar(root / "cifar100", CIFAR100, 100, patch)
        yield {
            "cifar10": f"data.root={root / 'cifar10'}",
            "cifar100": f"data.root={root / 'cifar100'}",
            "imagenet": f"data.name={real if real.is_dir() else root / 'imagenet'}",
        }


@pytest.fixture(scope="module")
def prepared():
    """Makes the model of a recipe; recipes of one network and data set share it, each at its own bounds.

    Without the trial conversion, which the whole runs have for networks of each kind of block.
    """
    shared = {}

    def get(experiment, recipe, loaded):
        key = (experiment.network, experiment.data)
        if key not in shared:
            shared.clear()
            shared[key] = build_cpt_model(recipe, len(loaded.train.classes), loaded.preprocessing, trained=True)
        model, precision = shared[key], recipe.precision
        model.config = replace(model.config, min_bits=precision.min_bits, max_bits=precision.max_bits)
        model.precision.max_bits = precision.max_bits
        model.precision.weight_bits["fixed"] = model.precision.activation_bits["fixed"] = precision.max_bits
        return model.train()

    return get


@pytest.mark.by_default("resnet38-cifar10-cpt3-8", "mobilenetv2-cifar100-static6", "resnet18-imagenet-cpt8-32")
@pytest.mark.parametrize("name", IMAGES)
def test_every_experiment_takes_a_step(name, data, prepared):
    experiment = experiments()[name]
    recipe = smoke_recipe(load_recipe(name, [data[experiment.data]]))
    loaded = load_data(recipe, torch.device("cpu"))
    model = prepared(experiment, recipe, loaded)
    forward, backward = recipe.precision.forward_schedule(), recipe.precision.backward_schedule()
    stream = training_stream(loaded.train_inputs, loaded.augment, batch_size=2, seed=0, batches=range(1), workers=0)
    inputs, labels = next(iter(stream))

    model.set_bits(forward.bits_at(0, 2), backward.bits_at(0, 2))
    loss = torch.nn.functional.cross_entropy(model(inputs), labels)
    model.zero_grad(set_to_none=True)
    loss.backward()

    assert math.isfinite(float(loss.detach()))
    first, *_, last = model.layers()
    for layer in (first, last):
        gradient = model.network.get_submodule(layer.name).weight.grad
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) > 0


@pytest.mark.by_default("resnet38-*")
@pytest.mark.parametrize("name", WHOLE_RUNS)
def test_whole_runs_of_two_steps_leave_what_a_run_leaves(name, data, tmp_path, capsys):
    setting = data[experiments()[name].data]

    assert main(["train", name, "--smoke", setting, "--out", str(tmp_path / "run"), "-q"]) == 0

    report = RunReport.read(tmp_path / "run" / "report.json")
    assert (report.name, report.steps) == (f"{name}-smoke", 2)
    assert math.isfinite(report.test.loss)
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_operations_in_the_table_are_those_of_the_network(network):
    experiment = next(entry for entry in IMAGES.values() if entry.network == network)
    size, classes = (224, 1000) if experiment.data == "imagenet" else (32, 10)
    described = describe_model(
        experiment.values["model"]["name"], num_classes=classes, in_channels=3, input_size=(size, size)
    )
    assert described.macs == sum(experiment.layers)


# --- language models ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text with as many different words as the Penn Treebank, in its layout."""
    folder = tmp_path_factory.mktemp("ptb")
    words = np.random.default_rng(0).permutation([f"w{number}" for number in range(9998)]).tolist()
    for split in ("train", "valid", "test"):
        lines = [" ".join(words[start : start + 20]) for start in range(0, len(words), 20)]
        (folder / f"ptb.{split}.txt").write_text("\n".join([*lines, "<unk>"]) + "\n")
    return folder


@pytest.mark.parametrize("network", ["lstm-lm", "transformer-lm"])
def test_the_operations_in_the_table_are_those_of_the_language_model(network):
    experiment = next(entry for entry in TEXT.values() if entry.values["model"]["name"] == network)
    vocabulary = {"ptb": 10_000, "wikitext103": 267_735}[experiment.data]
    with torch.device("meta"):  # shapes alone: the Transformer has 247 million parameters
        summary = describe_language_model(network, vocabulary, **experiment.values["model"]["args"])
    assert summary.macs == sum(experiment.layers)
    assert experiment.values["precision"]["ends"] == "scheduled"


#: One of the Transformer's sixteen blocks, and no bands beyond the words that there are: the network takes gigabytes.
SMALLER = ["model.args.layers=1", "model.args.cutoffs=[2000, 6000]", "data.text.sequence=8", "data.text.context=8"]


@pytest.mark.by_default("lstm-ptb-cpt5-8")
@pytest.mark.parametrize("name", TEXT)
def test_every_experiment_on_text_takes_a_step(name, corpus):
    smaller = ["data.text.sequence=5"] if "lstm" in name else [f"data.name={corpus}", *SMALLER]
    recipe = smoke_recipe(load_recipe(name, [f"data.root={corpus}", *smaller]))
    task = load_task(recipe, torch.device("cpu"))
    model = task.build_model()
    model.train().set_bits(recipe.precision.min_bits, recipe.precision.grad_max_bits)
    batch = next(iter(task.stream(range(1), ProcessGroup(), pin_memory=False)))
    outcome = task.step(model, batch, torch.device("cpu"), autocast=False)
    outcome.loss.backward()
    assert math.isfinite(float(outcome.loss.detach()))
    if "lstm" in name:  # untrained: all words alike
        assert float(outcome.loss.detach()) == pytest.approx(math.log(task.classes), abs=0.5)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_a_whole_run_of_the_lstm(corpus, tmp_path, capsys):
    real = Path(os.environ.get("CPT_DATA_DIR", "/nowhere")) / "ptb"
    text = [f"data.root={real if real.is_dir() else corpus}", "data.text.sequence=5"]
    assert main(["train", "lstm-ptb-cpt5-8", "--smoke", *text, "--out", str(tmp_path / "run"), "-q"]) == 0
    report = RunReport.read(tmp_path / "run" / "report.json")
    assert report.steps == 2
    assert report.test.samples == 4 * (4 * 5 + 1) - 1  # four chunks of four rows, not all of the text
