"""A language model whose probabilities are known in closed form, as ONNX, and as a bundle."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle import Bundle, BundleContents, Golden, TextProcessor, write_bundle
from cpt_deploy.bundle.processors.tokenization import Tokenizer, WordTokenizer
from cpt_deploy.signature import FreeSize, Signature, TensorSpec

WORDS = ("<eos>", "<unk>", "the", "company", "said", "it", "was", "new")
CYCLE = (2, 3, 4, 5, 6, 7, 0)
"""The likeliest way through the words, and round again."""

PENALTY = 0.25
"""What each time that a word was read takes from its logit: what a state is for."""


def bigram_table(size: int = len(WORDS)) -> npt.NDArray[np.float32]:
    """Logits (V, V) of the next word by the present one."""
    table = np.random.default_rng(0).normal(0, 1, (size, size)).astype(np.float32)
    for word, replay in zip(CYCLE, CYCLE[1:] + CYCLE[:1], strict=True):
        table[word, replay] = 8
    return table


def expected_logits(tokens: list[int], size: int = len(WORDS)) -> npt.NDArray[np.float64]:
    """Logits (T, V) of a row, in plain arithmetic."""
    table = bigram_table(size).astype(np.float64)
    seen = np.cumsum(np.eye(size)[tokens], axis=0)
    return table[tokens] - PENALTY * seen


def bigram_onnx(size: int = len(WORDS)) -> bytes:
    """The model: two states, one that counts what was read and one that grows by each token as a cache does."""
    constants = {
        "table": bigram_table(size),
        "depth": np.array(size, np.int64),
        "on_off": np.array([0, 1], np.float32),
        "time": np.array(1, np.int64),
        "times": np.array([1], np.int64),
        "penalty": np.array(PENALTY, np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("OneHot", ["input_ids", "depth", "on_off"], ["hot"]),
        helper.make_node("CumSum", ["hot", "time"], ["counts"]),
        helper.make_node("Unsqueeze", ["seen", "times"], ["before"]),
        helper.make_node("Add", ["counts", "before"], ["all"]),
        helper.make_node("Mul", ["all", "penalty"], ["minus"]),
        helper.make_node("Sub", ["rows", "minus"], ["logits"]),
        helper.make_node("ReduceSum", ["hot", "times"], ["now"], keepdims=0),
        helper.make_node("Add", ["seen", "now"], ["seen_after"]),
        helper.make_node("Concat", ["past", "input_ids"], ["present"], axis=1),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "bigram",
        [
            info("input_ids", TensorProto.INT64, ["N", "length"]),
            info("seen", TensorProto.FLOAT, ["N", size]),
            info("past", TensorProto.INT64, ["N", "past"]),
        ],
        [
            info("logits", TensorProto.FLOAT, ["N", "length", size]),
            info("seen_after", TensorProto.FLOAT, ["N", size]),
            info("present", TensorProto.INT64, ["N", "past+length"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def write_bigram(path: Path, tokenizer: Tokenizer | None = None, context: int | None = None) -> Bundle:
    tokenizer = WordTokenizer(WORDS) if tokenizer is None else tokenizer
    size = tokenizer.size
    golden = np.array([[2, 3, 4]], np.int64)
    contents = BundleContents(
        name="bigram",
        task="text-generation",
        signature=Signature(
            (
                TensorSpec("input_ids", "int64", ("length",)),
                TensorSpec("seen", "float32", (size,)),
                TensorSpec("past", "int64", ("past",)),
            ),
            (
                TensorSpec("logits", "float32", ("length", size)),
                TensorSpec("seen_after", "float32", (size,)),
                TensorSpec("present", "int64", ("past+length",)),
            ),
            (("seen", "seen_after"), ("past", "present")),
            {"length": FreeSize(2, most=context), "past": FreeSize(2, least=0, most=context)},
        ),
        processor=TextProcessor(tokenizer),
        onnx=bigram_onnx(size),
        tensors={"table": bigram_table(size)},
        graph={},
        quantization={"activations": []},
        golden=Golden(
            {"input_ids": golden},
            {"logits": expected_logits([2, 3, 4], size)[None].astype(np.float32)},
            tolerances={"logits": 1e-5},
        ),
        architecture="bigram",
        facts={"bits": 8},
    )
    return write_bundle(path / "bundle", contents=contents)


@pytest.fixture(scope="session")
def language_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model of words, without a limit of its context."""
    return write_bigram(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="session")
def make_language_bundle() -> Callable[..., Bundle]:
    """Makes one with another tokenizer or a context."""
    return write_bigram


@pytest.fixture(scope="session")
def logits_of() -> Callable[..., npt.NDArray[np.float64]]:
    """The model in plain arithmetic."""
    return expected_logits
