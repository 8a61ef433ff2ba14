"""Processors of texts and tensors, and how a task finds its processor."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from cpt_deploy.bundle import ImageProcessor, TensorProcessor, TextProcessor, processor_class
from cpt_deploy.bundle.processors.by_task import read_processor
from cpt_deploy.bundle.processors.text_processor import END, context_of
from cpt_deploy.bundle.processors.tokenization import ByteTokenizer, WordTokenizer, parse_tokenizer, train_bpe
from cpt_deploy.errors import BundleError, DataError
from cpt_deploy.signature import FreeSize, Signature, TensorSpec

WORDS = WordTokenizer(["<eos>", "<unk>", "the", "company", "said"])


def text_signature(vocabulary, context=None, shape=("length",)):
    return Signature(
        (TensorSpec("input_ids", "int64", shape), TensorSpec("keys", "float32", (2, "past", 4))),
        (TensorSpec("logits", "float32", (*shape, vocabulary)), TensorSpec("keys_after", "float32", (2, "past", 4))),
        (("keys", "keys_after"),),
        {"length": FreeSize(2, most=context), "past": FreeSize(2, least=0, most=context)},
    )


def decoded(processor, before, tokens):
    decode = processor.decoder(before)
    return "".join(decode(token) for token in (*tokens, END))


@pytest.fixture(scope="module")
def pairs():
    return TextProcessor(train_bpe(["naïve café, naïve élan\n"] * 9, 280))


@given(st.text("nave cafélïe\n", max_size=30), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pairs_decode_to_the_text_wherever_generation_ends(pairs, text, data):
    tokens = pairs.encode(text)
    end = data.draw(st.integers(0, len(tokens)))
    assert decoded(pairs, pairs.encode("\n"), tokens[:end]) == pairs.tokenizer.decode(tokens[:end])


@given(st.text(), st.integers(0, 40))
def test_bytes_decode_to_the_text_wherever_the_prompt_ends(text, cut):
    processor = TextProcessor(ByteTokenizer())
    tokens = processor.encode(text)
    clean = text.removeprefix("\ufeff").replace("\r\n", "\n").encode("utf-8", errors="replace")
    assert bytes(tokens) == clean
    prompt = clean[:cut].decode("utf-8", errors="ignore").encode()
    assert decoded(processor, tokens[: len(prompt)], tokens[len(prompt) :]) == clean[len(prompt) :].decode()


def test_words_are_separated_and_lines_begin_without_a_space():
    processor = TextProcessor(WORDS)
    assert processor.start == (0,)
    assert decoded(processor, [2], [3, 4, 0, 2]) == " company said\nthe"
    assert decoded(processor, [], [2, 3]) == "the company"


def test_pairs_decode_as_the_library_does():
    tokenizer = train_bpe(["the company said naïve things\n"] * 3, 270)
    processor, library = TextProcessor(tokenizer), Tokenizer.from_str(tokenizer.to_json())
    tokens = processor.encode("said the naïve company")
    assert tokens == library.encode("said the naïve company").ids
    assert decoded(processor, tokens[:2], tokens[2:]) == library.decode(tokens)[len(library.decode(tokens[:2])) :]


def test_a_text_model_has_one_score_for_each_token_and_a_context():
    processor = TextProcessor(WORDS)
    processor.check(text_signature(5))
    assert (context_of(text_signature(5)), context_of(text_signature(5, 32))) == (None, 32)
    for unfit in (text_signature(6), text_signature(5, shape=("length", 2)), Signature((), ())):
        with pytest.raises(ValueError, match=r"float32 \(N, T, 5\)"):
            processor.check(unfit)


def files_of(processor):
    files = processor.files()
    return {
        "cpt": {**processor.facts(), "processor": type(processor).__name__},
        **processor.config(),
    }, files.__getitem__


@pytest.mark.parametrize("tokenizer", [WORDS, ByteTokenizer()], ids=["words", "bytes"])
def test_a_text_processor_survives_its_files(tokenizer):
    config, read = files_of(TextProcessor(tokenizer))
    again = read_processor("text-generation", json.loads(json.dumps(config)), read)
    assert again.tokenizer.to_json() == tokenizer.to_json()
    assert again.contradictions(config, read) == []
    assert again.contradictions({**config, "vocab_size": 9}, read) == [
        "vocab_size of config.json contradicts tokenizer.json"
    ]


TABLE = Signature(
    (TensorSpec("x", "float32", (2,)), TensorSpec("n", "int64", ()), TensorSpec("s", "float32", (3,))),
    (TensorSpec("price", "float32", (1,)), TensorSpec("parts", "float32", (2, 2)), TensorSpec("t", "float32", (3,))),
    (("s", "t"),),
)
PROCESSOR = TensorProcessor({"x": ("age", "area")}, {"price": "EUR"})


def test_rows_are_lists_or_objects_and_states_may_be_left_out():
    inputs = PROCESSOR.inputs({"x": [{"area": 2, "age": 1}, [3, 4.5]], "n": [7, 8]}, TABLE)
    np.testing.assert_array_equal(inputs["x"], np.array([[1, 2], [3, 4.5]], np.float32), strict=True)
    np.testing.assert_array_equal(inputs["n"], np.array([7, 8]), strict=True)
    answers = PROCESSOR.answers({"price": np.array([[1.5]], np.float32), "parts": np.arange(4.0).reshape(1, 2, 2)})
    assert answers == [{"price": 1.5, "parts": [[0.0, 1.0], [2.0, 3.0]]}]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"n": [1]}, "inputs x, n, but got 'n'"),
        ({"x": [[1, 2]], "n": [1], "y": [1]}, "but got 'x', 'n', 'y'"),
        ({"x": [[1, 2], [3, 4]], "n": [1]}, "2 of x, 1 of n"),
        ({"x": [[1, 2, 3]], "n": [1]}, r"shape \(N, 2\), but got int64 \[1, 3\]"),
        ({"x": [[1, "a"]], "n": [1]}, "x as numbers"),
        ({"x": [[1, 2]], "n": [1.5]}, "n as integers"),
        ({"x": [[1, 2], [3]], "n": [1, 2]}, "x as nested lists"),
        ({"x": [{"age": 1}], "n": [1]}, "rows of x with age, area, but got age"),
        ({"x": [], "n": []}, "x as numbers"),
        ({"x": None, "n": [1]}, "x as numbers"),
        ({"x": [[True, False]], "n": [1]}, "x as numbers"),
    ],
    ids=str,
)
def test_values_that_do_not_fit_are_named(values, reason):
    with pytest.raises(DataError, match=reason):
        PROCESSOR.inputs(values, TABLE)


def test_features_and_units_have_to_fit_the_signature():
    PROCESSOR.check(TABLE)
    for unfit in (
        TensorProcessor({"x": ("a",)}), TensorProcessor({"x": ("a", "a")}), TensorProcessor({"y": ("a", "b")}),
        TensorProcessor({"n": ("a",)}), TensorProcessor(units={"x": "EUR"}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="Expected"):
            unfit.check(TABLE)


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed package with a task that has a processor of its own."""
    (tmp_path / "sound_task.py").write_text(
        "from cpt_deploy.bundle import TensorProcessor\n"
        "class SoundProcessor(TensorProcessor):\n    pass\n"
        "class Named:\n    processor = SoundProcessor\n"
        "class ByPath:\n    processor = 'sound_task:SoundProcessor'\n"
    )
    info = tmp_path / "sound_task-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sound-task\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cpt_deploy.tasks]\naudio-a = sound_task:Named\naudio-b = sound_task:ByPath\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("task", ["audio-a", "audio-b"])
def test_a_task_of_another_package_has_its_own_processor(plug_in, task):
    kind = processor_class(task)
    assert kind.__name__ == "SoundProcessor"
    config, read = files_of(kind())
    assert type(read_processor(task, config, read)) is kind


def test_known_tasks_have_theirs_and_others_take_tensors():
    assert processor_class("image-classification") is ImageProcessor
    assert processor_class("text-generation") is TextProcessor
    assert processor_class("audio-a") is TensorProcessor
    with pytest.raises(BundleError, match="the TensorProcessor of the task audio-a, but got the processor Sound"):
        read_processor("audio-a", {"cpt": {"processor": "SoundProcessor"}}, {}.__getitem__)


def test_a_context_is_what_all_states_leave():
    free = {"length": FreeSize(2, most=64), "past": FreeSize(2, least=0, most=63)}
    signature = replace(text_signature(5), free=free)
    assert context_of(signature) == signature.context == 63


@pytest.mark.parametrize(
    "content",
    [
        '{"model": {"type": "WordLevel", "vocab": ["a"]}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": 1, "b": "x"}}}',
        '{"model": {"type": "BPE", "vocab": {}}}',
        "[" * 100_000,
        "[]",
    ],
)
def test_what_is_no_tokenizer_is_one_clear_error(content):
    with pytest.raises(DataError, match="Expected a tokenizer"):
        parse_tokenizer(content.encode())
