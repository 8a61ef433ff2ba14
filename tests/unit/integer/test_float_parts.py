"""Networks with operations in float: the frozen graph against the trained model and against onnxruntime."""

import json
import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from cpt_deploy.bundle.runtime.operators import optimized_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError
from cpt_deploy.integer import IntegerExecutor, freeze
from cpt_deploy.integer.float_calls import function_of
from cpt_deploy.integer.graph import IntegerGraph, from_dict, to_dict
from cpt_deploy.integer.operations import Embed, FullyConnected, Quantize
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.quantization import QuantizationConfig, calibrate, prepare


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.Hardtanh(), nn.Tanh()], ids=repr)
def test_a_layer_before_an_activation_in_float_is_on_integers(activation: nn.Module) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), activation, nn.LayerNorm(32), nn.Linear(32, 5))
    model = prepare(network, torch.randn(4, 16), QuantizationConfig())
    calibrate(model, [torch.randn(32, 16) for _ in range(4)])
    description, arrays = to_dict(freeze(model))
    graph = from_dict(json.loads(json.dumps(description)), arrays)
    file, x = write_onnx(graph), torch.randn(9, 16)
    operators = optimized_operators(file)
    assert operators["QGemm"] == 2
    assert not {"Gemm", "FusedGemm"} & operators.keys()
    (got,) = open_session(file).run(None, {graph.signature.inputs[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), IntegerExecutor(graph)(x), rtol=1e-4, atol=1e-5)


class TokenClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.block(self.embedding(tokens)).mean(1))
        return result


class Hybrid(nn.Module):
    """Convolutions with BatchNorm and ReLU, then GELU and GroupNorm in float, and a BatchNorm after those."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Sequential(nn.GELU(), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3), nn.GELU(), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.middle(self.stem(x)).mean((2, 3)))
        return result


def vit() -> nn.Module:
    network = VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5)
    nn.init.normal_(network.heads.head.weight)  # type: ignore[union-attr]
    return network


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5)


SHAPE = (3, 16, 16)
MODELS = {"vit": (vit, SHAPE), "swin": (swin, SHAPE), "tokens": (TokenClassifier, (6,)), "hybrid": (Hybrid, SHAPE)}


def frozen(name: str) -> tuple[IntegerGraph, Tensor, Tensor]:
    """Return a calibrated model's graph, as it comes back from JSON and arrays, with inputs and the model's results."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    dtype = torch.int64 if name == "tokens" else torch.float32
    x = torch.randint(0, 20, (5, *shape)) if name == "tokens" else torch.randn(5, *shape)
    model = prepare(make(), torch.zeros(2, *shape, dtype=dtype), QuantizationConfig())
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # biases of zero would hide how they are added
    calibrate(model, [x])
    model.eval()
    description, arrays = to_dict(freeze(model))
    with torch.no_grad():
        return from_dict(json.loads(json.dumps(description)), arrays), x, model(x)


@pytest.mark.parametrize("name", list(MODELS))
def test_integers_are_onnxruntimes_and_no_layer_is_left_in_float(name: str) -> None:
    graph, x, trained = frozen(name)
    executor = IntegerExecutor(graph)
    assert torch.allclose(executor(x), trained, atol=0.02 * float(trained.abs().max()))
    file = write_onnx(graph)
    layers = [o for o in graph.weighted() if not isinstance(o, Embed)]
    operators = optimized_operators(file)
    kernels = ("MatMulIntegerToFloat", "QGemm", "QLinearConv")
    assert sum(operators.get(kernel, 0) for kernel in kernels) == len(layers)
    assert operators.get("Gemm", 0) == operators.get("Conv", 0) == operators.get("FusedConv", 0) == 0

    entries = [o.output for o in graph.operations if isinstance(o, Quantize)]
    products = [o.output for o in graph.weighted() if isinstance(o, FullyConnected)]
    codes = [tensor for tensor in graph.tensors if tensor not in entries]
    got = _run(file, [*entries, *codes], x)
    logits = got.pop("logits")
    assert np.allclose(logits, executor(x).numpy(), atol=0.02 * float(trained.abs().max()))
    own = executor.trace(x, {entry: torch.from_numpy(got[entry]) for entry in entries})
    for tensor in codes:
        assert np.array_equal(own[tensor].numpy(), got[tensor]), tensor
    assert products or codes


def _run(file: bytes, names: list[str], x: Tensor) -> dict[str, np.ndarray]:
    proto = onnx.load_from_string(file)
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    session = open_session(proto.SerializeToString())
    results = session.run(["logits", *names], {session.get_inputs()[0].name: x.numpy()})
    return dict(zip(["logits", *names], results, strict=True))


@pytest.mark.parametrize("name", ["vit", "tokens"])
def test_products_of_the_same_codes_are_the_same_numbers(name: str) -> None:
    graph, x, _ = frozen(name)
    file, executor = write_onnx(graph), IntegerExecutor(graph)
    proto = onnx.load_from_string(file)
    last = [o for o in graph.weighted() if isinstance(o, FullyConnected)][-1]
    session = open_session(file)
    assert proto.graph.output[0].name == "logits"
    logits = session.run(["logits"], {session.get_inputs()[0].name: x.numpy()})[0]
    entries = [o.output for o in graph.operations if isinstance(o, Quantize)]
    codes = {k: torch.from_numpy(v) for k, v in _run(file, entries, x).items() if k != "logits"}
    assert graph.outputs == (last.output,)
    assert np.array_equal(executor.trace(x, codes)[last.output].numpy(), logits)


class Masked(nn.Module):
    """Attention with a mask of keys, as it is given to `scaled_dot_product_attention`."""

    def __init__(self, as_float: bool, joined: bool) -> None:
        super().__init__()
        self.projection, self.head = nn.Linear(8, 24), nn.Linear(8, 8)
        self.as_float, self.joined = as_float, joined

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        query, key, value = self.projection(x)[:, None].chunk(3, -1)
        mask = keys.to(torch.bool)[:, None, None]
        if self.joined:
            mask = mask & torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        if self.as_float:
            mask = torch.where(mask, 0.0, -math.inf)
        result: Tensor = self.head(functional.scaled_dot_product_attention(query, key, value, mask)[:, 0])
        return result


@pytest.mark.parametrize(("as_float", "joined"), [(False, False), (True, True)])
def test_attention_is_0_where_a_mask_leaves_no_key(as_float: bool, joined: bool) -> None:
    torch.manual_seed(0)
    network = Masked(as_float, joined).eval()
    x, keys = torch.randn(6, 5, 8), torch.ones(6, 5, dtype=torch.int64)
    model = prepare(network, (x, keys), QuantizationConfig())
    calibrate(model, [(x, keys)])
    graph = freeze(model.eval())
    keys[0] = 0
    keys[1, :3] = 0  # with causal masks, no key is left for the first positions
    with torch.no_grad():
        expected = network(x, keys)
    assert torch.allclose(expected[0], network.head.bias.expand(5, -1), atol=1e-6)
    got = open_session(write_onnx(graph)).run(None, {"x": x.numpy(), "keys": keys.numpy()})[0]
    np.testing.assert_allclose(got, expected.numpy(), atol=0.02 * float(expected.abs().max()))
    np.testing.assert_allclose(got, IntegerExecutor(graph).run({"x": x, "keys": keys})["logits"], atol=0.02)


class Functions(nn.Module):
    def __init__(self, *functions: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.functions = nn.Linear(4, 4), functions

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return self.layer(y), *(function(y, x) for function in self.functions)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_functions_near_and_at_the_ends_of_their_domains_are_those_of_pytorch() -> None:
    functions = Functions(lambda y, x: torch.log1p(y), lambda y, x: torch.expm1(y), torch.atan2).eval()
    model = prepare(functions, (torch.randn(4, 4), torch.randn(4, 4)), QuantizationConfig())
    calibrate(model, [(torch.randn(8, 4), torch.randn(8, 4))])
    session = open_session(write_onnx(freeze(model.eval())))
    ends = torch.tensor([0.0, 1e-30, 1e-8, 3e-7, 1e-4, 0.5, 1.0, 3.0, 17.0, 88.0, 89.0, 1e30, math.inf])
    ends = torch.cat([ends, -ends, torch.tensor([math.nan])])
    y, x = (part.reshape(-1, 1).expand(-1, 4).contiguous() for part in torch.cartesian_prod(ends, ends).unbind(1))
    with torch.no_grad():
        expected = functions(y, x)[1:]
    got = session.run([output.name for output in session.get_outputs()][1:], {"y": y.numpy(), "x": x.numpy()})
    for number, (wanted, made) in enumerate(zip(expected, got, strict=True)):
        np.testing.assert_allclose(made, wanted.numpy(), rtol=2e-6, atol=0, err_msg=str(number))


def test_operators_that_do_not_compute_are_refused() -> None:
    for target in ("aten.from_file.default", "aten.add_.Tensor", "os.system", "aten.none.default"):
        with pytest.raises(ConversionError, match="operator"):
            function_of(target)
