"""Language models that were prepared as any network become bundles: tokens and states in, logits and states out."""

import numpy as np
import pytest
import torch

import cpt_deploy as cpt
from cpt_deploy.bundle import OnnxRuntimeModel, initial_states, next_states
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.processors.text_processor import context_of
from cpt_deploy.bundle.processors.tokenization import ByteTokenizer, WordTokenizer
from cpt_deploy.errors import BundleError
from cpt_deploy.models.language import LstmLanguageModel, TransformerLanguageModel
from cpt_deploy.models.language.preparing import preparing_arguments
from cpt_deploy.signature import BATCH

VOCABULARY, CONTEXT = 40, 32
WORDS = WordTokenizer(["<eos>", "<unk>", *(f"w{number}" for number in range(VOCABULARY - 2))])


def tokens(rows, length, seed=0):
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


NETWORKS = {
    "lstm": lambda: LstmLanguageModel(VOCABULARY, embedding=12, hidden=16, layers=2, dropout=0.0),
    "transformer": lambda: TransformerLanguageModel(
        VOCABULARY, features=16, heads=2, layers=1, inner=24, context=CONTEXT, dropout=0.0
    ),
}


@pytest.fixture(scope="module", params=["lstm", pytest.param("transformer", marks=pytest.mark.slow)])
def model(request):
    torch.manual_seed(0)
    network = NETWORKS[request.param]()
    example, shapes, states = preparing_arguments(network, VOCABULARY)
    model = cpt.prepare(network, example, cpt.QuantizationConfig(min_bits=4), dynamic_shapes=shapes, states=states)
    cpt.calibrate(model, [(tokens(2, 9, seed), *example[1:]) for seed in range(4)])
    return model.eval()


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "little"
    processor = cpt.TextProcessor(WORDS)
    return cpt.export_bundle(model, path, tokens(3, 7), task="text-generation", processor=processor)


def test_the_bundle_is_of_text_and_its_parts_agree(model, bundle):
    assert (bundle.task, bundle.signature) == ("text-generation", model.signature)
    assert bundle.processor.tokenizer.words == WORDS.words
    assert context_of(bundle.signature) == (None if "h" in bundle.signature.names else CONTEXT)
    assert bundle.golden.outputs.keys() == {"logits"}
    assert bundle.golden.inputs.keys() == {"input_ids"}
    assert contradictions(bundle) == []


def test_onnxruntime_reproduces_the_golden_sample_and_continues_texts(model, bundle):
    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    assert runtime.reproduce_golden(bundle.golden).reproduced
    text = tokens(2, 20, 7).numpy()
    whole, states, logits = runtime.run({"input_ids": text})["logits"], {}, []
    for part in np.split(text, [1, 4, 5], axis=1):
        outputs = runtime.run({"input_ids": part, **states})
        states = next_states(bundle.signature, outputs)
        logits.append(outputs["logits"])
    tolerance = 0.02 * np.abs(whole).max()
    np.testing.assert_allclose(np.concatenate(logits, axis=1), whole, atol=tolerance)
    with torch.no_grad():
        empty = initial_states(bundle.signature, {BATCH: 2}).values()
        expected = model(torch.from_numpy(text), *map(torch.from_numpy, empty))
    np.testing.assert_allclose(whole, expected[0].numpy(), atol=tolerance)


def test_more_than_the_context_is_refused(bundle):
    context = context_of(bundle.signature)
    if context is None:
        pytest.skip("an LSTM has no limit")
    runtime = OnnxRuntimeModel(bundle.onnx_path, bundle.signature)
    states = next_states(bundle.signature, runtime.run({"input_ids": tokens(1, context - 1).numpy()}))
    assert runtime.run({"input_ids": tokens(1, 1).numpy(), **states})["logits"].shape == (1, 1, VOCABULARY)
    with pytest.raises(ValueError, match="the model's context, but got 33"):
        runtime.run({"input_ids": tokens(1, 2).numpy(), **states})


def test_a_tokenizer_of_another_size_is_refused(model, tmp_path):
    processor = cpt.TextProcessor(ByteTokenizer())
    with pytest.raises(BundleError, match=r"float32 \(N, T, 256\)"):
        cpt.export_bundle(model, tmp_path / "b", tokens(2, 4), task="text-generation", processor=processor)
