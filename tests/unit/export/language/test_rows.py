"""A row of a batch is what it is alone, bit by bit: what lets a server compute texts together."""

import numpy as np
import pytest
import torch

from cpt_deploy.export.language.kinds import language_signature, write_language_onnx
from cpt_deploy.integer.language import freeze_language_model
from cpt_deploy.models.language import build_language_model
from cpt_deploy.quantization import QuantizationConfig, calibrating, prepare_language_model
from tests.unit.export.language.running import TextRuntime, joined, rows_of

MODELS = {
    "lstm-lm": {"embedding": 48, "hidden": 40, "layers": 2},
    "transformer-lm": {"features": 48, "heads": 4, "layers": 2, "inner": 96, "context": 64},
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_do_not_depend_on_each_other(name):
    torch.manual_seed(0)
    model = prepare_language_model(build_language_model(name, 300, **MODELS[name]), QuantizationConfig())
    with torch.no_grad(), calibrating(model):
        model(torch.randint(0, 300, (4, 30)))
    frozen = freeze_language_model(model.eval())
    runtime = TextRuntime(write_language_onnx(frozen), language_signature(frozen))
    tokens = np.random.default_rng(0).integers(0, 300, (11, 20))
    _, state = runtime.run(tokens[:, :19])
    logits, after = runtime.run(tokens[:, 19:], state)
    whole = joined([rows_of(state, slice(start, start + 1)) for start in range(11)])
    assert all(np.array_equal(whole[key], state[key]) for key in state)
    for row in range(11):
        rows = slice(row, row + 1)
        alone, alone_after = runtime.run(tokens[rows, 19:], rows_of(state, rows))
        assert np.array_equal(alone, logits[rows])
        expected = rows_of(after, rows)
        assert all(np.array_equal(alone_after[key], expected[key]) for key in expected)
