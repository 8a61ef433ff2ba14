import json
import math
import threading

import numpy as np
import pytest
from scipy.special import log_softmax

from cpt_deploy.bundle.processors.tokenization import ByteTokenizer, train_bpe
from cpt_serving.inference import generation
from cpt_serving.inference.generation import ScoredToken
from cpt_serving.routes import generate

GREEDY = {"prompt": "the company", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def client(language_bundle, connect_to):
    with connect_to(language_bundle) as connected:
        yield connected


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-1] == ""
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def greedy_by_hand(logits_of, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_text_is_that_of_the_table(client, logits_of):
    answer = client.post("/generate", json={**GREEDY, "logprobs": 2}).json()
    expected = greedy_by_hand(logits_of, [2, 3], 6)
    assert [entry["token"] for entry in answer["logprobs"]] == expected
    assert answer["text"] == " said it was new\nthe"
    assert answer["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 2, "generated_tokens": 6}
    tokens = [2, 3]
    for entry in answer["logprobs"]:
        row = log_softmax(logits_of(tokens)[-1])
        assert entry["logprob"] == pytest.approx(row[entry["token"]], abs=1e-5)
        assert [each["token"] for each in entry["top"]] == np.argsort(-row, kind="stable")[:2].tolist()
        tokens.append(entry["token"])


def test_stream_says_the_same_token_by_token(client):
    whole = client.post("/generate", json=GREEDY).json()
    parts = events(client.post("/generate", json={**GREEDY, "stream": True}))
    assert len(parts) == 6
    assert "".join(part["text"] for part in parts) == whole["text"]
    assert all("finish_reason" not in part for part in parts[:-1])
    assert parts[-1]["usage"] == whole["usage"]
    assert parts[-1]["model"] == "bigram"


def test_seed_decides(client):
    ask = {"prompt": "the", "max_tokens": 30, "temperature": 3.0}
    texts = [client.post("/generate", json={**ask, "seed": seed}).json()["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    first = client.post("/generate", json=ask).json()
    assert client.post("/generate", json={**ask, "seed": first["seed"]}).json()["text"] == first["text"]


def test_top_k_of_one_is_greedy(client):
    answer = client.post("/generate", json={**GREEDY, "temperature": 2.0, "top_k": 1})
    assert answer.json()["text"] == client.post("/generate", json=GREEDY).json()["text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "text"), [("it was", " said "), (["zzz", "\n"], " said it was new"), (" sa", "")])
def test_stop_ends_the_text_before_it(client, stop, text, stream):
    response = client.post("/generate", json={**GREEDY, "stop": stop, "stream": stream})
    last = events(response)[-1] if stream else response.json()
    assert last["finish_reason"] == "stop"
    got = "".join(event["text"] for event in events(response)) if stream else last["text"]
    assert got == text


def test_empty_prompt_begins_a_line(client):
    answer = client.post("/generate", json={**GREEDY, "prompt": ""}).json()
    assert answer["text"].startswith("the company")
    assert answer["usage"]["prompt_tokens"] == 1


def test_score_is_the_tables_perplexity(client, logits_of):
    answer = client.post("/score", json={"text": "the company said\nthe other", "logprobs": 3}).json()
    tokens = [2, 3, 4, 0, 2, 1]
    rows = log_softmax(logits_of(tokens), axis=-1)
    expected = [rows[place, token] for place, token in enumerate(tokens[1:])]
    assert [entry["token"] for entry in answer["tokens"]] == tokens
    assert answer["tokens"][0]["logprob"] is None
    assert [entry["logprob"] for entry in answer["tokens"][1:]] == pytest.approx(expected, abs=1e-5)
    assert answer["perplexity"] == pytest.approx(math.exp(-np.mean(expected)), rel=1e-5)
    assert [len(entry["top"]) for entry in answer["tokens"]] == [0, 3, 3, 3, 3, 3]


def test_memory_of_many_probabilities_is_counted_before_they_are_computed(language_bundle, connect_to):
    with connect_to(language_bundle, max_memory_bytes=40_000) as client:
        text = "the company said it was new " * 10
        assert client.post("/score", json={"text": text}).status_code == 200
        refused = client.post("/score", json={"text": text, "logprobs": 5})
        assert (refused.status_code, client.service.memory.taken) == (413, 0)


def test_probabilities_and_their_json_are_made_in_a_thread(client, monkeypatch):
    threads = set()
    for place, name in ((generation, "scored_token"), (generate, "JsonResponse")):
        function = getattr(place, name)

        def noted(*arguments, function=function):
            threads.add(threading.current_thread().name)
            return function(*arguments)

        monkeypatch.setattr(place, name, noted)
    assert client.post("/score", json={"text": "the company", "logprobs": 1}).status_code == 200
    assert threads
    assert all(name.startswith("decode-") for name in threads)


def test_a_perplexity_beyond_the_numbers_is_null(client, monkeypatch):
    async def score(*_arguments, **_options):
        return [ScoredToken(2, "the", None), ScoredToken(3, " company", -750.0)]

    monkeypatch.setattr(generate, "score", score)
    response = client.post("/score", json={"text": "the company"})
    assert response.status_code == 200
    assert (response.json()["logprob"], response.json()["perplexity"]) == (-750, None)


def test_long_texts_are_read_in_parts(client, logits_of):
    text = "the company said it was new " * 60
    answer = client.post("/score", json={"text": text}).json()
    tokens = [2, 3, 4, 5, 6, 7] * 60
    rows = log_softmax(logits_of(tokens), axis=-1)
    expected = sum(rows[place, token] for place, token in enumerate(tokens[1:]))
    assert answer["logprob"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": "the", "max_token": 3}, "did you mean max_tokens?"),
        ({"prompt": "the", "temperature": -1}, "temperature"),
        ({"prompt": "the", "top_p": 0}, "top_p"),
        ({"prompt": "the", "max_tokens": 100000}, "at most 1024"),
        ({"prompt": 3}, "prompt"),
        ({}, "prompt"),
        ({"prompt": "the", "stop": [""]}, "stop"),
        ({"prompt": "the", "stop": ["x" * 257]}, "of 1 to 256 characters"),
        ({"prompt": "the", "seed": 1.5}, "seed"),
    ],
)
def test_bad_requests_say_what_was_expected(client, body, said):
    response = client.post("/generate", json=body)
    assert response.status_code == 400
    assert said in response.json()["error"]


def test_prompts_beyond_the_context_are_refused_and_texts_end_there(make_language_bundle, connect_to, tmp_path):
    with connect_to(make_language_bundle(tmp_path, context=4)) as client:
        response = client.post("/generate", json={"prompt": "the company said it was"})
        assert response.status_code == 400
        assert "at most 4 tokens, the context of the model, but got 5" in response.json()["error"]
        answer = client.post("/generate", json={"prompt": "the company", "temperature": 0}).json()
        assert answer["usage"] == {"prompt_tokens": 2, "generated_tokens": 3}
        assert answer["finish_reason"] == "length"
        assert client.post("/score", json={"text": "the " * 5}).status_code == 400


def test_bytes_come_as_whole_characters(make_language_bundle, connect_to, tmp_path):
    with connect_to(make_language_bundle(tmp_path, ByteTokenizer())) as client:
        ask = {"prompt": "ä", "max_tokens": 40, "temperature": 5.0, "seed": 3}
        whole = client.post("/generate", json=ask).json()
        assert whole["usage"] == {"prompt_tokens": 2, "generated_tokens": 40}
        streamed = events(client.post("/generate", json={**ask, "stream": True}))
        assert "".join(event["text"] for event in streamed) == whole["text"]


def test_pairs_come_through_the_library(make_language_bundle, connect_to, tmp_path):
    tokenizer = train_bpe(["the company said ünder\n"] * 5, 280)
    with connect_to(make_language_bundle(tmp_path, tokenizer)) as client:
        ask = {"prompt": "the company", "max_tokens": 30, "temperature": 5.0, "seed": 3, "logprobs": 0}
        whole = client.post("/generate", json=ask).json()
        tokens = [entry["token"] for entry in whole["logprobs"]]
        prompt = tokenizer.encode("the company").tolist()
        complete = tokenizer.decode(prompt + tokens)
        assert complete.startswith("the company" + whole["text"])


def test_triton_clients_get_tritons_answers(client):
    whole = client.post("/generate", json=GREEDY).json()["text"]
    path = "/v2/models/bigram/generate"
    parameters = {"max_tokens": 6, "temperature": 0}
    body = {"id": "a", "text_input": "the company", "parameters": parameters}
    expected = {"id": "a", "model_name": "bigram", "model_version": "1", "text_output": whole}
    assert client.post(path, json=body).json() == expected
    assert client.post(path, json={"text_input": "the company", **parameters}).json()["text_output"] == whole
    assert client.post("/v2/models/bigram/versions/1/generate", json=body).status_code == 200
    parts = events(client.post(f"{path}_stream", json={**body, "parameters": {**parameters, "stream": True}}))
    assert "".join(part["text_output"] for part in parts) == whole
    assert client.post(path, json={"text_input": "the", "stream": True}).status_code == 400
    assert client.post("/v2/models/other/generate", json=body).status_code == 404


def test_metrics_count_tokens(client):
    before = client.get("/metrics").text
    client.post("/generate", json=GREEDY)
    after = client.get("/metrics").text

    def value(text, name):
        line = next(line for line in text.splitlines() if line.startswith(f"cpt_serve_{name}{{"))
        return float(line.split()[-1])

    assert value(after, "generated_tokens_total") - value(before, "generated_tokens_total") == 6
    assert value(after, "prompt_tokens_total") - value(before, "prompt_tokens_total") == 2
    assert value(after, "time_to_first_token_seconds_count") - value(before, "time_to_first_token_seconds_count") == 1
    assert value(after, "tokens_per_second_count") - value(before, "tokens_per_second_count") == 1
    assert value(after, "texts_in_flight") == 0


def test_classifiers_and_language_models_say_which_they_are(client, connect_to, shared_bundle):
    response = client.post("/predict", json={"instances": [[2, 3], [2, 4]]})
    first, second = response.json()["predictions"]
    assert np.shape(first["logits"]) == np.shape(second["logits"]) == (2, 8)
    assert second["present"] == [2, 4]
    assert "/generate" in client.get("/openapi.json").json()["paths"]
    with connect_to(shared_bundle) as classifier:
        response = classifier.post("/generate", json={"prompt": "the"})
        assert response.status_code == 400
        assert "but colours answers /predict" in response.json()["error"]


def test_deadlines_end_a_generation(client):
    headers = {"X-Request-Timeout-Ms": "0.001"}
    assert client.post("/generate", json=GREEDY, headers=headers).status_code == 504
