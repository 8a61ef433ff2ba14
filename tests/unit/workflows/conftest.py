"""Two small runs, a classifier's and a language model's, as Python gives them."""

import random

import pytest

from cpt_deploy.recipe import load_recipe
from cpt_deploy.training import train

SHORT = (
    "train.epochs=null",
    "train.eval_every=null",
    "train.checkpoint_every=null",
    "train.calibration_batches=4",
    "train.device=cpu",
    "precision.cycles=2",
)


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """The run of a very small classifier of digits."""
    run = tmp_path_factory.mktemp("classifier") / "run"
    settings = ("name=digits", "model.args.width=4", "train.steps=40", "train.batch_size=64", *SHORT)
    train(load_recipe("digits-quickstart", settings), run)
    return run


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Text in which each word is one of two that may follow the last one."""
    folder = tmp_path_factory.mktemp("corpus")
    source = random.Random(0)
    for split, lines in (("train", 200), ("valid", 30), ("test", 30)):
        state, text = 0, []
        for _ in range(lines):
            line = []
            for _ in range(10):
                state = (2 * state + source.randrange(2)) % 8
                line.append(f"w{state}")
            text.append(" ".join(line))
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture(scope="session")
def language_model(corpus, tmp_path_factory):
    """The run of a very small language model."""
    run = tmp_path_factory.mktemp("language") / "run"
    settings = (
        f"data.name={corpus}",
        "data.text.sequence=12",
        "model.args={embedding: 16, hidden: 16, layers: 1, dropout: 0.0}",
        "train.steps=60",
        "train.batch_size=8",
        "train.eval_batch_size=2",
        *SHORT,
    )
    train(load_recipe("ptb-lstm", settings), run)
    return run


@pytest.fixture(params=["classifier", "language_model"])
def run(request):
    """Each of both."""
    return request.getfixturevalue(request.param)
