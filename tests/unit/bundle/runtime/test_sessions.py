"""Sums of 8-bit products are exact on every processor: on one without VNNI by other kernels, if need be."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cpt_deploy.bundle.runtime import cpu as processor
from cpt_deploy.bundle.runtime import sessions
from cpt_deploy.bundle.runtime.cpu import CpuInfo
from cpt_deploy.bundle.runtime.sessions import EXACT_SUMS, PORTABLE_KEY, open_session, session_options

OLD = CpuInfo("without VNNI", "x86_64", 2, ("avx2",))
NEW = CpuInfo("with VNNI", "x86_64", 2, ("avx2", "avx512_vnni"))
UNKNOWN = CpuInfo("of another system", "x86_64", 2, None)
ARM = CpuInfo("some ARM", "aarch64", 2, ("asimddp",))
CHANNELS = 64


@pytest.fixture
def on(monkeypatch):
    def set_processor(cpu: CpuInfo) -> None:
        monkeypatch.setattr(sessions, "read_cpu", lambda: cpu)

    return set_processor


def greatest_products(*, portable: bool = False) -> bytes:
    """A product of the greatest codes, 255 · 127 each, that no sum of two in 16 bits can hold."""
    constants = {
        "w": np.full((CHANNELS, 8), 127, np.int8),
        "scale": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
    ]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, ["N", 8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {PORTABLE_KEY: "true"} if portable else {})
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def asks_for_exact_kernels(options) -> bool:
    try:
        return options.get_session_config_entry(EXACT_SUMS) == "1"
    except RuntimeError:  # there is no such entry
        return False


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("threads", [1, 2])
def test_no_sum_saturates_on_this_machine(rows, threads):
    x = np.full((rows, CHANNELS), 255, np.float32)
    (sums,) = open_session(greatest_products(), threads=threads).run(None, {"x": x})
    assert (sums == CHANNELS * 255 * 127).all()


@pytest.mark.parametrize(("cpu", "asked"), [(OLD, True), (UNKNOWN, True), (NEW, False), (ARM, False)])
def test_exact_kernels_are_asked_for_where_others_would_saturate(on, cpu, asked):
    on(cpu)
    assert asks_for_exact_kernels(open_session(greatest_products()).get_session_options()) is asked


def test_a_portable_model_keeps_the_fast_kernels(on):
    on(OLD)
    assert not asks_for_exact_kernels(open_session(greatest_products(portable=True)).get_session_options())


def test_the_option_can_be_decided_by_hand():
    assert asks_for_exact_kernels(session_options(exact_sums=True))
    assert not asks_for_exact_kernels(session_options(exact_sums=False))


def test_this_processor_is_asked():
    assert sessions.may_saturate() is (processor.read_cpu().saturates is not False)
