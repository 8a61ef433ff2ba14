import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.bundle.processors.tokenization import ByteTokenizer, WordTokenizer, read_tokenizer
from cpt_deploy.data.text import (
    build_tokenizer,
    corpora,
    evaluation_chunks,
    is_corpus,
    load_corpus,
    steps_per_epoch,
    training_chunk,
    training_rows,
)
from cpt_deploy.errors import DataError, UsageError

TEXT = "the cat sat\non the mat\n"
DATA = Path(os.environ.get("CPT_DATA_DIR", "/nowhere"))


def library(tokenizer):
    return pytest.importorskip("tokenizers").Tokenizer.from_str(tokenizer.to_json())


def test_words_are_numbered_by_frequency_with_ends_of_lines():
    tokenizer = build_tokenizer(TEXT, "word")
    assert tokenizer.words == ("the", "<eos>", "cat", "sat", "on", "mat", "<unk>")
    assert tokenizer.encode("the dog\n").tolist() == [0, 6, 1]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == "the cat sat \non the mat \n"


def test_rare_words_are_left_out_of_a_small_vocabulary():
    tokenizer = build_tokenizer(TEXT, "word", 4)
    assert tokenizer.words == ("the", "<eos>", "cat", "<unk>")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=4)


@given(lines=st.lists(st.lists(WORDS, max_size=5), min_size=1, max_size=5), other=st.lists(WORDS, max_size=5))
def test_words_are_those_of_the_tokenizers_library(lines, other):
    tokenizer = build_tokenizer("\n".join(" ".join(line) for line in lines) + "\n", "word")
    text = " ".join(other) + "\n" + " ".join(lines[0])
    assert library(tokenizer).encode(text).ids == tokenizer.encode(text).tolist()


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_bytes_are_those_of_the_tokenizers_library(text):
    tokenizer = ByteTokenizer()
    assert library(tokenizer).encode(text).ids == tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(("level", "size"), [("word", None), ("byte", None), ("bpe", 270)])
def test_a_tokenizer_is_read_back_as_it_was(tmp_path, level, size):
    if level == "bpe":
        pytest.importorskip("tokenizers")
    tokenizer = build_tokenizer(TEXT * 9, level, size)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json())
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert (again.level, again.size, again.to_json()) == (level, tokenizer.size, tokenizer.to_json())
    assert again.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_byte_pairs_give_the_text_back():
    pytest.importorskip("tokenizers")
    tokenizer = build_tokenizer(TEXT * 9, "bpe", 270)
    text = "the émigré\n on  mats"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXT)) < len(TEXT)


@given(text=st.text(st.sampled_from("the cat  é\n\x0c\x85\u2028\t"), max_size=40))
def test_byte_pairs_are_those_of_the_tokenizers_library(text):
    tokenizer = _pairs()
    assert library(tokenizer).encode(text).ids == tokenizer.encode(text).tolist()


@functools.cache
def _pairs():
    pytest.importorskip("tokenizers")
    return build_tokenizer("the cat  \nsat é\x0c\n" * 9, "bpe", 280)


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match="Expected a tokenizer at"):
        read_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(DataError, match="no <eos>"):
        WordTokenizer(["<unk>", "a"])


def test_a_size_for_bytes_or_too_few_pairs_is_an_error():
    with pytest.raises(UsageError, match="bytes"):
        build_tokenizer(TEXT, "byte", 100)
    with pytest.raises(UsageError, match="more than 256"):
        build_tokenizer(TEXT, "bpe", 100)


def test_a_folder_and_a_file_are_corpora(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"wiki.{split}.tokens").write_text(f"{split}\r\n")
    assert is_corpus(str(tmp_path))
    assert [load_corpus(tmp_path).text(split) for split in ("train", "valid")] == ["train\n", "valid\n"]
    file = tmp_path / "whole.txt"
    file.write_text("".join(f"line {number:03}\n" for number in range(200)))
    corpus = load_corpus(file)
    parts = [corpus.text(split) for split in ("train", "valid", "test")]
    assert "".join(parts) == file.read_text()
    assert [part.count("\n") for part in parts] == [180, 10, 10]


@pytest.mark.parametrize("beside", ["train.npz", "train", "photos"])
def test_texts_beside_archives_and_folders_are_no_corpus(beside, tmp_path):
    (tmp_path / "train.txt").write_text("cat/1.png\n")
    assert is_corpus(str(tmp_path))
    (tmp_path / beside).touch() if "." in beside else (tmp_path / beside).mkdir()
    assert not is_corpus(str(tmp_path))


def test_texts_about_data_are_no_corpus(tmp_path):
    for name in ("README.txt", "classes.txt", "._train.txt"):
        (tmp_path / name).write_text("text\n")
    assert not is_corpus(str(tmp_path))


def test_a_known_corpus_has_its_own_files_and_two_of_one_split_are_refused(tmp_path):
    for split in ("train", "valid", "test"):
        for kind in ("ptb", "ptb.char"):
            (tmp_path / f"{kind}.{split}.txt").write_text(f"{kind}\n")
    assert load_corpus("ptb", tmp_path).text("train") == "ptb\n"
    with pytest.raises(DataError, match=r"but got ptb\.char\.test\.txt and ptb\.test\.txt"):
        load_corpus(tmp_path)


@pytest.mark.parametrize("line", ["word " * 20_000, ("word " * 2000 + "\n") * 10, "x" * 5000])
def test_long_lines_are_divided_too(line, tmp_path):
    (tmp_path / "book.txt").write_text(f"My Book\n{line}")
    corpus = load_corpus(tmp_path / "book.txt")
    parts = [corpus.text(split) for split in ("train", "valid", "test")]
    assert "".join(parts) == f"My Book\n{line}"
    assert [len(part) / len("".join(parts)) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.03)


def test_missing_empty_and_foreign_text_are_one_line_each(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"caf\xe9 au lait\n")
    with pytest.raises(DataError, match="valid and test are missing"):
        load_corpus(tmp_path)
    (tmp_path / "valid.txt").write_text(" \n")
    (tmp_path / "test.txt").write_text("a\n")
    corpus = load_corpus(tmp_path)
    with pytest.raises(DataError, match=r"UTF-8 text in .*byte 3 \(line 1\) is 0xe9"):
        corpus.text("train")
    with pytest.raises(DataError, match="it has none"):
        corpus.text("valid")


def test_each_step_goes_on_where_the_last_one_ended():
    rows = training_rows(np.arange(47, dtype=np.int32), 4)
    assert rows.shape == (4, 11)
    assert steps_per_epoch(rows, 4) == 3
    chunks = [training_chunk(rows, 4, number) for number in range(3)]
    tokens = np.concatenate([chunk.tokens for chunk in chunks], axis=1)
    targets = np.concatenate([chunk.targets for chunk in chunks], axis=1)
    np.testing.assert_array_equal(tokens, rows[:, :-1])
    np.testing.assert_array_equal(targets, rows[:, 1:])
    assert [chunk.first for chunk in chunks] == [True, False, False]
    assert training_chunk(rows, 4, 3).first
    with pytest.raises(DataError, match="2 training tokens"):
        training_rows(np.arange(5, dtype=np.int32), 4)


@given(count=st.integers(2, 60), rows=st.integers(1, 70), length=st.integers(1, 9), context=st.integers(0, 9))
def test_evaluation_predicts_each_token_once(count, rows, length, context):
    ids = np.arange(count, dtype=np.int32)
    targets, tokens = [], []
    for chunk in evaluation_chunks(ids, rows, length, context):
        wanted = chunk.targets >= 0
        targets += chunk.targets[wanted].tolist()
        tokens += chunk.tokens[wanted].tolist()
    assert sorted(targets) == list(range(1, count))
    assert [token + 1 for token in tokens] == targets


@pytest.mark.parametrize("name", ["ptb", "wikitext-2"])
def test_published_numbers_of_tokens_and_words(name):
    if not (DATA / name).is_dir():
        pytest.skip("no such corpus here")
    info = corpora.get(name)
    if name == "ptb":
        corpus = load_corpus(name)
        tokenizer = build_tokenizer(corpus.text("train"), "word")
        assert tokenizer.size == info.types
        assert [len(tokenizer.encode(corpus.text(split))) for split in ("train", "valid", "test")] == list(info.tokens)
        assert json.loads(tokenizer.to_json())["model"]["unk_token"] == "<unk>"
    else:
        texts = [(DATA / name / f"wiki.{split}.tokens").read_text() for split in ("valid", "test")]
        tokenizer = build_tokenizer(texts[0], "word")
        assert [len(tokenizer.encode(text)) for text in texts] == list(info.tokens[1:])
