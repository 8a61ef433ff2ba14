"""Reading ONNX files: damaged ones, old ones, functions, constants, external data."""

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cpt_deploy.errors import ConversionError, CptError, DataError
from cpt_deploy.onnx_graph.reading import read_onnx
from tests.unit.onnx_graph.reading.networks import Network, run, samples


def network() -> Network:
    made = Network(["N", 3, 8, 8])
    made.conv("x", 3, 4)
    return made


def test_other_content_is_refused_in_one_line(tmp_path: Path) -> None:
    for content in (b"", b"not a model", b"\x08\x09", bytes(1000)):
        with pytest.raises(DataError, match="Expected an ONNX model") as caught:
            read_onnx(content)
        assert "\n" not in str(caught.value)
    for path, found in ((tmp_path / "missing.onnx", "there is nothing"), (tmp_path, "there is a directory")):
        with pytest.raises(DataError, match=found):
            read_onnx(path)


def test_damaged_files_give_an_error_or_the_same_function() -> None:
    file = network().file("conv0")
    (sample,) = samples((1, 3, 8, 8), 1)
    wanted = run(file, sample)[0]
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(60):
        damaged = bytearray(file)
        damaged[rng.integers(len(file))] ^= 1 << rng.integers(8)
        try:
            model = read_onnx(bytes(damaged)).to_model().SerializeToString()
        except CptError:
            continue
        read += 1
        own = run(bytes(damaged), sample) if b"x" in bytes(damaged) else [wanted]
        np.testing.assert_allclose(run(model, sample)[0], own[0], rtol=1e-4, atol=1e-5)
    assert read > 20


def test_names_that_are_no_text_are_refused() -> None:
    file = network().file("conv0").replace(b"conv0", b"con\xcc0")
    with pytest.raises(DataError, match=r"damaged or of another kind: .* is no UTF-8"):
        read_onnx(file)


def test_a_truncated_file_is_refused() -> None:
    file = network().file("conv0")
    for length in range(0, len(file) - 1, 97):
        with pytest.raises(CptError):
            read_onnx(file[:length])


def test_a_model_that_onnxruntime_refuses_is_refused() -> None:
    made = Network(["N", 3])
    with pytest.raises(ConversionError, match="Expected a model that onnxruntime runs"):
        read_onnx(made.file(made.op("NoSuchOperator", "x")))


def test_external_data_is_read(tmp_path: Path) -> None:
    made = network()
    onnx.save(made.model("conv0"), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (sample,) = samples((1, 3, 8, 8), 1)
    read = read_onnx(tmp_path / "m.onnx")
    np.testing.assert_array_equal(
        run(read.to_model().SerializeToString(), sample)[0], run(made.file("conv0"), sample)[0]
    )
    (tmp_path / "m.bin").unlink()
    with pytest.raises(DataError, match="damaged or of another kind"):
        read_onnx(tmp_path / "m.onnx")


def test_functions_are_inlined() -> None:
    own = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("own", "Twice", ["a"], ["b"], own, [helper.make_opsetid("", 17)])
    nodes = [helper.make_node("Twice", [name], [made], domain="own") for name, made in ("xy", "yz")]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xz"]
    graph = helper.make_graph(nodes, "functions", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    read = read_onnx(model.SerializeToString())
    assert [node.op_type for node in read.nodes] == ["Relu", "Add", "Relu", "Add"]
    (sample,) = samples((2, 4), 1)
    np.testing.assert_array_equal(
        run(read.to_model().SerializeToString(), sample)[0], run(model.SerializeToString(), sample)[0]
    )


def test_constants_are_computed_and_known_shapes_too() -> None:
    made = Network(["N", 3, 8, 8])
    x = made.conv("x", 3, 4)
    channels = made.op("Gather", made.op("Shape", x), np.array([1]))
    two = made.op("Mul", channels, made.op("Cast", made.op("Sqrt", np.float32([4])), to=TensorProto.INT64))
    shape = made.op("Concat", np.array([0]), two, np.array([-1]), axis=0)
    read = read_onnx(made.file(made.op("Reshape", x, shape)))
    assert [node.op_type for node in read.nodes] == ["Conv", "Reshape"]
    values = read.array(read.nodes[1].input[1])
    assert values is not None
    assert values.tolist() == [0, 8, -1]


@pytest.mark.parametrize(("shape", "axis", "alone"), [((2, 5), 1, True), ((2, 3, 4), -1, True), ((2, 3, 4), 1, False)])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_a_softmax_of_an_old_opset_is_one_operator(kind: str, shape: tuple[int, ...], axis: int, alone: bool) -> None:
    """Its axis began the dimensions that it took as one: the version converter flattens and reshapes for it."""
    build = Network(["N", *shape[1:]], opset=11)
    file = build.file(build.op(kind, "x", axis=axis))
    network = read_onnx(file)
    assert ([node.op_type for node in network.nodes] == [kind]) == alone
    (sample,) = samples(shape, 1)
    again = network.to_model().SerializeToString()
    np.testing.assert_allclose(run(again, sample)[0], run(file, sample)[0], rtol=1e-6)


def test_constants_that_would_fill_the_memory_are_not_computed() -> None:
    made = Network(["N", 3])
    huge = made.op("ConstantOfShape", np.array([2**20, 2**20]))
    read = read_onnx(made.file(made.op("Add", "x", made.op("ReduceMax", huge, keepdims=0))))
    assert [node.op_type for node in read.nodes] == ["ConstantOfShape", "ReduceMax", "Add"]


def test_a_branch_that_is_always_taken_replaces_its_if() -> None:
    made = Network(["N", 4])
    value = onnx.ValueInfoProto(name="made")
    neg, exp = (helper.make_graph([helper.make_node(k, ["x"], ["made"])], k, [], [value]) for k in ("Neg", "Exp"))
    read = read_onnx(made.file(made.op("If", np.array(False), then_branch=neg, else_branch=exp)))
    assert "If" not in {node.op_type for node in read.nodes}
    (sample,) = samples((2, 4), 1)
    np.testing.assert_allclose(run(read.to_model().SerializeToString(), sample)[0], np.exp(sample["x"]), rtol=1e-6)


def test_a_file_above_2_gb_is_one_line_and_is_not_read(tmp_path: Path) -> None:
    size = 600_000_000
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("length", str(4 * size))):
        tensor.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [size]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    (tmp_path / "large.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(4 * size)  # sparse
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"at most 2 GB with its data, .* has 2\.2 GB"):
        read_onnx(tmp_path / "large.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


@pytest.mark.parametrize("step", [2, -1])
def test_a_slice_of_a_shape_without_axes_has_a_step(step: int) -> None:
    made = Network([2, 3, 4, 5])
    first, last = (0, 4) if step > 0 else (3, -9)
    part = made.op("Slice", made.op("Shape", "x"), np.array([first]), np.array([last]), "", np.array([step]))
    file = made.file(made.op("Mul", part, np.array([1])))
    read = read_onnx(file)
    (sample,) = samples((2, 3, 4, 5), 1)
    np.testing.assert_array_equal(run(read.to_model().SerializeToString(), sample)[0], run(file, sample)[0])
    constant = read.array(read.nodes[0].input[0])
    assert constant is not None
    assert constant.tolist() == [2, 3, 4, 5][first:last:step]


def test_a_range_may_read_one_constant_twice() -> None:
    made = Network(["N", 4])
    for name, value in (("one", 1), ("five", 5)):  # without dimensions
        made.constants.append(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))
    read = read_onnx(made.file(made.op("Add", "x", made.op("Range", "one", "five", "one"))))
    constant = read.array(read.nodes[0].input[1])
    assert constant is not None
    assert constant.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [TensorProto.INT32, TensorProto.DOUBLE])
def test_a_mean_of_other_numbers_than_float32_stays(kind: int) -> None:
    made = Network(["N", 3, 4, 4])
    cast = made.op("Cast", made.op("Mul", "x", np.float32(10)), to=kind)
    file = made.file(made.op("ReduceMean", cast, axes=[2, 3]))
    (sample,) = samples((2, 3, 4, 4), 1)
    (got,) = run(read_onnx(file).to_model().SerializeToString(), sample)
    np.testing.assert_array_equal(got, run(file, sample)[0])


SPARSE = [
    helper.make_sparse_tensor(
        helper.make_tensor("k", TensorProto.FLOAT, [2], [1.5, -2.0]),
        helper.make_tensor("places", TensorProto.INT64, list(places.shape), places.reshape(-1)),
        [4, 5],
    )
    for places in (np.array([1, 19]), np.array([[0, 1], [3, 4]]))
]


@pytest.mark.parametrize("sparse", SPARSE)
@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("where", ["initializer", "constant", "branch"])
def test_sparse_constants_are_read(where: str, opset: int, sparse: onnx.SparseTensorProto) -> None:
    made = Network(["N", 4, 5], opset=opset)
    add = helper.make_node("Add", ["x", "k"], ["y"])
    constant = helper.make_node("Constant", [], ["k"], sparse_value=sparse)
    nodes = {"initializer": [add], "constant": [constant, add]}.get(where, [])
    if where == "branch":
        value = onnx.ValueInfoProto(name="y")
        branches = (helper.make_graph(body, "branch", [], [value]) for body in ([constant, add], [add]))
        then, other = branches
        other.sparse_initializer.append(sparse)
        condition = made.op("Greater", made.op("ReduceSum", "x", keepdims=0), np.float32(0))
        made.nodes.append(helper.make_node("If", [condition], ["y"], then_branch=then, else_branch=other))
    made.nodes.extend(nodes)
    model = made.model("y")
    if where == "initializer":
        model.graph.sparse_initializer.append(sparse)
    file = model.SerializeToString()
    read = read_onnx(file).to_model().SerializeToString()
    for sample in samples((2, 4, 5), 4):
        np.testing.assert_array_equal(run(read, sample)[0], run(file, sample)[0])


def test_types_of_outputs_that_only_onnxruntime_knows_are_declared() -> None:
    made = Network(["N", 4])
    known, count = made.op("Gelu", "x", domain="com.microsoft"), made.op("ArgMax", "x", axis=1)
    read = read_onnx(made.file(known, count))
    assert [value.type.tensor_type.elem_type for value in read.outputs] == [TensorProto.FLOAT, TensorProto.INT64]
