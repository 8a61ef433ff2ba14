"""A language model's whole way as a user goes it: text, training, bundle, validation, server, text."""

import json
import random

import httpx2
import pytest

from cpt_serving import PredictClient


@pytest.fixture(scope="module")
def run(cpt, workspace):
    generator = random.Random(0)
    chain = {"the": ["company", "market"], "company": ["said", "fell"], "market": ["fell", "rose"], "said": ["it"]}
    lines = []
    for _ in range(400):
        words = ["the"]
        while words[-1] in chain:
            words.append(generator.choice(chain[words[-1]]))
        lines.append(" ".join(words))
    (workspace / "corpus.txt").write_text("\n".join(lines) + "\n")
    small = ("train.eval_batch_size=2", "train.epochs=1", "train.calibration_batches=8")
    settings = ("data.name=corpus.txt", "model.args.hidden=16", "model.args.embedding=16", "train.batch_size=4")
    cpt("train", "ptb-lstm", *settings, *small, "--out", "runs/text")
    return workspace / "runs" / "text"


@pytest.fixture(scope="module")
def bundle(cpt, run):
    exported = json.loads(cpt("export", run, "--json").stdout)
    assert exported["golden"]["mismatches"] == 0
    validated = json.loads(cpt("validate", exported["bundle"], "--data", "corpus.txt", "--json").stdout)
    assert validated["passed"]
    assert validated["integers"]["mismatching"] == 0 < validated["integers"]["compared"]
    assert [entry["name"] for entry in validated["runtimes"]] == [
        "trained",
        "executor",
        "onnxruntime",
        "onnxruntime-unoptimized",
    ]
    return exported["bundle"]


@pytest.mark.slow
def test_a_budget_gives_each_layer_bits_of_its_own(cpt, run, workspace):
    words = ("export", run, "--budget", 0.75, "--out", "mixed")
    assert "training samples" in " ".join(cpt(*words).stdout.split())
    exported = json.loads(cpt(*words, "--json").stdout)
    chosen = exported["facts"]["mixed_precision"]
    assert chosen["size_of_8_bits"] <= 0.75
    bits = {layer["layer"]: layer["bits"] for layer in chosen["layers"]}
    assert {"embedding", "layers.0.input_layer", "layers.0.hidden_layer", "head.decoder"} < set(bits)
    assert set(bits.values()) <= {5, 6, 7, 8}
    assert all(set(layer["cost"]) == {"5", "6", "7", "8"} for layer in chosen["layers"])
    quantization = json.loads((workspace / "mixed" / "quantization.json").read_text())
    assert {entry["layer"]: entry["bits"] for entry in quantization["weights"]} == bits
    validated = json.loads(cpt("validate", "mixed", "--data", "corpus.txt", "--run", run, "--json").stdout)
    assert validated["integers"]["mismatching"] == 0 < validated["integers"]["compared"]
    assert [entry["name"] for entry in validated["runtimes"]] == [
        "trained",
        "executor",
        "onnxruntime",
        "onnxruntime-unoptimized",
    ]
    assert "budget from 0.6" in cpt("export", run, "--budget", 0.1, code=2).stderr


def test_an_export_cannot_saturate(cpt, run, workspace):
    cpt("export", run, "--opset", 21, "--out", "portable")
    facts = json.loads((workspace / "portable" / "config.json").read_text())["cpt"]
    assert (facts["portable"], facts["opset"]) == (True, 21)
    assert facts["reduced_layers"]
    assert "nothing can saturate (portable: smaller range in" in cpt("validate", "portable").stdout
    validated = json.loads(cpt("validate", "portable", "--data", "corpus.txt", "--run", run, "--json").stdout)
    assert validated["integers"]["mismatching"] == 0
    assert not validated["saturation"]["possible_without_vnni"]
    assert cpt("generate", "portable", "the", "--max-tokens", 3, "--seed", 1).stdout.startswith("the")


@pytest.mark.slow
def test_a_sweep_measures_each_width_and_a_second_one_keeps_what_it_has(cpt, run):
    words = ("sweep", run, "--bits", "8,5", "--act-bits", "8,same", "--rounds", 3, "--json")
    document = json.loads(cpt(*words).stdout)
    allocation = [(entry["weight_bits"], entry["activation_bits"]) for entry in document["exports"]]
    assert allocation == [(8, 8), (5, 8), (5, 5)]
    for entry in document["exports"]:
        assert entry["mismatching_integers"] == 0 < entry["compared_integers"]
        assert entry["perplexity"] == pytest.approx(document["trained_perplexity"], rel=0.2)
        assert entry["milliseconds"] > 0
    sizes = [entry["weights_bytes"] for entry in document["exports"]]
    assert sizes[0] > sizes[1] == sizes[2]
    names = {path.name for path in (run / "sweep").iterdir()}
    assert names == {"bundle-8bit", "bundle-5bit", "bundle-5bit-act5", "sweep.json", "sweep.md", "sweep.png"}
    again = json.loads(cpt(*words).stdout)["exports"]
    assert all(entry["reused"] for entry in again)
    assert [entry["perplexity"] for entry in again] == [entry["perplexity"] for entry in document["exports"]]
    assert "5, 6, 7, 8" in cpt("sweep", run, "--bits", "8,2", code=2).stderr


@pytest.fixture(scope="module")
def server(start, bundle):
    process = start("serve", bundle, "--port", 0, "--json", "--no-access-log")
    url = json.loads(process.stdout.readline())["url"]
    yield url
    process.terminate()
    process.communicate(timeout=30)


def test_the_server_gives_the_text_that_the_command_gives(cpt, bundle, server):
    options = ("--max-tokens", 12, "--seed", 5, "--json")
    here = json.loads(cpt("generate", bundle, "the company", *options).stdout)
    there = json.loads(cpt("generate", "--url", server, "the company", *options).stdout)
    assert here["text"] == there["text"]
    assert here["usage"] == there["usage"] == {"prompt_tokens": 2, "generated_tokens": 12}
    with PredictClient(server) as client:
        events = list(client.generate("the company", max_tokens=12, seed=5))
    assert "".join(event["text"] for event in events) == here["text"]


def test_the_server_scores_text(server):
    answer = httpx2.post(f"{server}/score", json={"text": "the company said it\n"}, trust_env=False).json()
    assert [entry["text"] for entry in answer["tokens"]] == ["the", "company", "said", "it", "<eos>"]
    assert answer["perplexity"] > 1


def test_mistakes_are_one_line(cpt, bundle, run, server):
    def error(*words, code):
        lines = cpt(*words, code=code).stderr.splitlines()
        assert "Traceback" not in "".join(lines)
        return next(line for line in lines if line.startswith("error:"))

    tokenizer = run / "tokenizer.json"
    assert "rows of ['input_ids']" in error("predict", bundle, tokenizer, code=2)
    assert "reads text, but got the" in error("predict", bundle, "the", code=2)
    assert "at most 1024" in error("generate", "--url", server, "the", "--max-tokens", 5000, code=2)
    content = tokenizer.read_text()
    tokenizer.write_text(content.replace('"market"', '"Market"'))
    assert "vocabulary" in error("export", run, code=5)
    tokenizer.write_text(content)
