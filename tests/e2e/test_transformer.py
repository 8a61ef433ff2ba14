"""A Transformer that reads bytes: text, training, integers, validation, server, text."""

import json

import httpx2
import numpy as np
import pytest

from cpt_serving import PredictClient

CONTEXT = 32
VERSES = ("shall i compare thee to a summer day", "thou art more lovely and more temperate", "rough winds do shake")


@pytest.fixture(scope="module")
def run(cpt, workspace):
    lines = [VERSES[(number * number) % 3] for number in range(300)]
    (workspace / "verses.txt").write_text("\n".join(lines) + "\n")
    shape = f"model.args={{features: 32, layers: 2, heads: 2, inner: 64, context: {CONTEXT}, dropout: 0.0}}"
    small = (
        "train.steps=60",
        "train.eval_every=60 steps",
        "train.checkpoint_every=60 steps",
        "train.calibration_batches=8",
    )
    text = ("data.name=verses.txt", f"data.text.sequence={CONTEXT // 2}", f"data.text.context={CONTEXT // 2}")
    cpt("train", "tinyshakespeare-transformer", shape, *small, *text, "precision.cycles=2", "--out", "runs/verses")
    return workspace / "runs" / "verses"


@pytest.fixture(scope="module")
def bundle(cpt, run):
    exported = json.loads(cpt("export", run, "--bits", 8, "--json").stdout)
    assert exported["golden"]["mismatches"] == 0
    validated = json.loads(cpt("validate", exported["bundle"], "--data", "verses.txt", "--json").stdout)
    assert validated["passed"]
    assert validated["integers"]["mismatching"] == 0 < validated["integers"]["compared"]
    names = [entry["name"] for entry in validated["runtimes"]]
    assert names == ["trained", "executor", "onnxruntime", "onnxruntime-unoptimized"]
    assert len(validated["tensors"]) == 2 * 4 + 1
    return exported["bundle"]


@pytest.fixture(scope="module")
def server(start, bundle):
    process = start("serve", bundle, "--port", 0, "--json", "--no-access-log")
    url = json.loads(process.stdout.readline())["url"]
    yield url
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.slow
def test_the_server_gives_the_text_that_the_command_gives_up_to_the_context(cpt, bundle, server):
    options = ("--max-tokens", 100, "--seed", 5, "--json")
    here = json.loads(cpt("generate", bundle, "shall i", *options).stdout)
    there = json.loads(cpt("generate", "--url", server, "shall i", *options).stdout)
    assert here["text"] == there["text"]
    # The last token of a text takes no place in the context.
    assert here["usage"] == there["usage"] == {"prompt_tokens": 7, "generated_tokens": CONTEXT - 7 + 1}
    assert here["finish_reason"] == "length"
    with PredictClient(server) as client:
        events = list(client.generate("shall i", max_tokens=100, seed=5))
    assert "".join(event["text"] for event in events) == here["text"]
    too_long = cpt("generate", bundle, "a" * (CONTEXT + 1), code=2).stderr
    assert f"at most {CONTEXT} tokens" in too_long


@pytest.mark.slow
def test_state_goes_round_through_the_protocol_and_gives_the_scores(server):
    def infer(tokens, state):
        entry = {"name": "input_ids", "datatype": "INT64", "shape": [1, len(tokens)], "data": tokens}
        url = f"{server}/v2/models/tinyshakespeare-transformer/infer"
        answer = httpx2.post(url, json={"inputs": [entry, *state]}, trust_env=False).raise_for_status()
        outputs = answer.json()["outputs"]
        state = [{**output, "name": output["name"].removesuffix("_after")} for output in outputs[1:]]
        return outputs[0], state

    text = b"rough winds"
    whole, caches = infer(list(text), [])
    assert [entry["name"] for entry in caches] == [f"state_{number}" for number in range(4)]
    assert all(entry["shape"] == [1, 2, len(text), 16] for entry in caches)
    state, rows = [], []
    for byte in text:
        logits, state = infer([byte], state)
        rows += logits["data"]
    assert rows == pytest.approx(whole["data"], abs=0.1)
    answer = httpx2.post(f"{server}/score", json={"text": text.decode()}, trust_env=False).json()
    assert [entry["token"] for entry in answer["tokens"]] == list(text)
    logits = np.array(whole["data"]).reshape(len(text), 256)
    chosen = logits[np.arange(len(text) - 1), list(text[1:])] - np.log(np.exp(logits[:-1]).sum(axis=1))
    assert answer["logprob"] == pytest.approx(chosen.sum(), abs=0.1)
    assert answer["perplexity"] < 230  # of 256 bytes: it has learnt something
