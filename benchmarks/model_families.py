"""Families of networks, with random weights: prepare, one training step, freeze, ONNX, onnxruntime.

The table says for each network whether it converts, which parts stay in float, the share of its multiply-accumulates on
integers, and how many integers differ between the executor and onnxruntime. If parts compute in float, each stretch of
integers is replayed from onnxruntime's integers at its boundary.

Results are written after each network: repeating the command measures those that are missing.

    python benchmarks/model_families.py [--networks resnet18 timm/levit_128s] [--again]

timm and transformers have to be installed: `pip install timm transformers`.
"""

import argparse
import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, machine, machine_line, markdown_table, write_results
from torch import Tensor, nn

from cpt_deploy.bundle.runtime.operators import float_operators
from cpt_deploy.bundle.runtime.sessions import open_session
from cpt_deploy.errors import ConversionError
from cpt_deploy.export import write_onnx
from cpt_deploy.integer import IntegerExecutor, IntegerGraph, freeze
from cpt_deploy.integer.float_costs import float_costs
from cpt_deploy.integer.operations import FullyConnected, Quantize
from cpt_deploy.models import build_model
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel, calibrate, prepare
from cpt_deploy.validation.integers.intermediate_outputs import with_intermediate_outputs

CLASSES = 10
TOKENS, LENGTH = 100, 16

IMAGES = [
    "torchvision/resnet18", "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0", "torchvision/efficientnet_v2_s", "torchvision/regnet_y_400mf",
    "torchvision/densenet121", "torchvision/vgg11_bn", "torchvision/vit_b_32", "torchvision/swin_t",
    "torchvision/swin_v2_t", "torchvision/convnext_tiny", "torchvision/maxvit_t", "timm/resnet10t",
    "timm/mobilenetv4_conv_small", "timm/efficientnet_lite0", "timm/regnetz_005", "timm/repvgg_a0",
    "timm/convnext_atto", "timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/mixer_s32_224",
    "timm/gmlp_ti16_224", "timm/levit_128s", "timm/efficientformer_l1", "timm/mobilevit_xxs", "timm/poolformer_s12",
    "timm/pvt_v2_b0", "timm/ghostnet_100", "timm/fastvit_t8", "timm/xcit_nano_12_p16_224", "timm/resnetv2_50",
]  # fmt: skip
"""Image classifiers, by their `model.name`."""

SIZES = {"torchvision/maxvit_t": 224, "timm/efficientformer_l1": 224, "timm/levit_128s": 224, "timm/gmlp_ti16_224": 224}
"""Height and width of the images of networks that do not accept 64."""


class Result(nn.Module):
    """A network that returns one entry of another's output dictionary."""

    def __init__(self, network: nn.Module, key: str) -> None:
        super().__init__()
        self.network, self.key = network, key

    def forward(self, x: Tensor) -> Tensor:
        """Return the entry."""
        result: Tensor = self.network(x)[self.key]
        return result


@dataclass(frozen=True)
class Network:
    """A network to take through the whole path.

    Args:
        name: Name in the table.
        make: Builds the network, with random weights.
        shape: Shape of one input.
        tokens: Whether inputs are token ids rather than images.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: bool = False

    def inputs(self, count: int) -> Tensor:
        """Return random inputs: token ids, or smooth images with some noise."""
        if self.tokens:
            return torch.randint(0, TOKENS, (count, *self.shape))
        coarse = torch.randn(count, 3, 8, 8)
        smooth = nn.functional.interpolate(coarse, size=self.shape[1:], mode="bilinear")
        return smooth + 0.2 * torch.randn(count, *self.shape)


def image_network(name: str, size: int | None = None, classes: int = CLASSES) -> Network:
    """Return an image classifier by its name."""
    side = size or SIZES.get(name, 64)
    return Network(
        name,
        lambda: build_model(name, num_classes=classes, in_channels=3, input_size=(side, side)),
        (3, side, side),
    )


def other_networks() -> list[Network]:
    """Return the other networks: backbones of detection and segmentation, and text classifiers."""
    from torchvision.models import detection, segmentation

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    distil = {"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128}

    def segmenter(name: str) -> nn.Module:
        return segmentation.__dict__[name](weights=None, weights_backbone=None, num_classes=CLASSES)  # type: ignore[no-any-return]

    def detector() -> nn.Module:
        return detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)

    image = (3, 64, 64)
    return [
        Network("fcn_resnet50, its body", lambda: Result(segmenter("fcn_resnet50").backbone, "out"), image),
        Network("fcn_resnet50", lambda: Result(segmenter("fcn_resnet50"), "out"), image),
        Network(
            "deeplabv3_mobilenet_v3_large", lambda: Result(segmenter("deeplabv3_mobilenet_v3_large"), "out"), image
        ),
        Network("fasterrcnn_mobilenet_v3_large_fpn, its body", lambda: Result(detector().backbone.body, "1"), image),
        Network("fasterrcnn_mobilenet_v3_large_fpn, with its FPN", lambda: Result(detector().backbone, "0"), image),
        Network("fasterrcnn_mobilenet_v3_large_fpn", detector, image),
        text_network("Bert", **small),
        text_network("DistilBert", **distil),
        text_network("Roberta", pad_token_id=0, **small),
        text_network("Albert", embedding_size=32, **small),
        text_network("Electra", embedding_size=32, **small),
        text_network("GPT2", n_embd=64, n_layer=2, n_head=2, pad_token_id=0, use_cache=False),
    ]


def text_network(kind: str, **settings: Any) -> Network:
    """Return a text classifier of the package transformers, from a small configuration."""

    def make() -> nn.Module:
        transformers = importlib.import_module("transformers")
        config = getattr(transformers, f"{kind}Config")(vocab_size=TOKENS, num_labels=CLASSES, **settings)
        network: nn.Module = getattr(transformers, f"{kind}ForSequenceClassification")(config)
        return network

    return Network(f"transformers/{kind}ForSequenceClassification", make, (LENGTH,), tokens=True)


def training_step(model: QuantizedModel, network: Network) -> float:
    """Take one SGD step at 3 bits and return the loss."""
    model.train().set_bits(3, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    results = model(network.inputs(4))
    loss = nn.functional.cross_entropy(results, torch.arange(results[:, 0].numel()).reshape(results[:, 0].shape) % 3)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@dataclass(frozen=True)
class Differences:
    """Comparison of the executor's integers with onnxruntime's.

    Args:
        integers: Number of integers compared, replayed from the boundary.
        differing: Number of them that differ.
        hidden: Tensors that could not be read out without changing what onnxruntime runs.
        codes: Number of integers compared in a free-running executor.
        other_codes: Number of them that differ.
        logits: Maximum difference of an output, relative to the maximum output.
    """

    integers: int
    differing: int
    hidden: int
    codes: int
    other_codes: int
    logits: float


def count_differences(graph: IntegerGraph, model: bytes, x: Tensor) -> Differences:
    """Compare the executor with onnxruntime on inputs."""
    entries = [operation.output for operation in graph.operations if isinstance(operation, Quantize)]
    layers = [o.output for o in graph.weighted() if isinstance(o, FullyConnected) and o.output not in graph.tensors]
    observable = with_intermediate_outputs(model, products=layers)
    names = ["logits", *(intermediate.name for intermediate in observable.intermediates)]
    session = open_session(observable.model)
    got = dict(zip(names, session.run(names, {session.get_inputs()[0].name: x.numpy()}), strict=True))
    executor = IntegerExecutor(graph)
    given = {name: torch.from_numpy(got[name]) for name in entries if name in got}
    replayed, own = (executor.trace(x, codes) for codes in (given, None))
    compared = [name for name in names if name in replayed and name not in given]
    codes = [name for name in names if name in graph.tensors]
    with torch.no_grad():
        expected = executor(x).numpy()
    return Differences(
        integers=sum(got[name].size for name in compared),
        differing=sum(_other(got[name], replayed[name]) for name in compared),
        hidden=len(observable.hidden),
        codes=sum(got[name].size for name in codes),
        other_codes=sum(_other(got[name], own[name]) for name in codes),
        logits=float(np.abs(got["logits"] - expected).max() / np.abs(expected).max()),
    )


def _other(got: Any, expected: Tensor) -> int:
    return int((got != expected.numpy()).sum())


@dataclass(frozen=True)
class Converted:
    """A network after one training step, frozen and written.

    Args:
        model: The trained model.
        graph: The frozen graph.
        onnx: The ONNX file.
        loss: Loss of the training step.
    """

    model: QuantizedModel
    graph: IntegerGraph
    onnx: bytes
    loss: float


def convert(network: Network) -> Converted:
    """Convert a network from float to ONNX.

    Raises:
        ConversionError: If it cannot be prepared, frozen or written.
    """
    torch.manual_seed(0)
    dtype = torch.int64 if network.tokens else torch.float32
    model = prepare(network.make(), torch.zeros(2, *network.shape, dtype=dtype), QuantizationConfig())
    loss = training_step(model, network)
    calibrate(model, [network.inputs(4) for _ in range(2)])
    graph = freeze(model.eval())
    return Converted(model, graph, write_onnx(graph), loss)


def measure(network: Network) -> dict[str, Any]:
    """Take one network through the whole path."""
    try:
        converted = convert(network)
    except ConversionError as error:
        return {"network": network.name, "converts": False, "reason": str(error)}
    graph, costs = converted.graph, float_costs(converted.graph)
    found = count_differences(graph, converted.onnx, network.inputs(2))
    return {
        "network": network.name,
        "converts": True,
        "input": list(network.shape),
        "loss": converted.loss,
        "layers": len(graph.weighted()),
        "float_operators": costs.operators,
        "float_operators_in_onnxruntime": float_operators(converted.onnx),
        "integer_share_of_macs": costs.integer_share,
        **found.__dict__,
    }


def row(result: dict[str, Any]) -> list[str]:
    """Return a result as a row of the table."""
    if not result["converts"]:
        return [result["network"], "no", result["reason"], "", "", ""]
    floats = ", ".join(f"{count} {name}" for name, count in result["float_operators"].items())
    return [
        result["network"],
        "in parts" if floats else "fully",
        floats or "none",
        f"{100 * result['integer_share_of_macs']:.1f} %",
        f"{result['differing']} of {result['integers']:,}",
        f"{result['other_codes']:,} of {result['codes']:,}" if floats else "",
    ]


def all_networks() -> list[Network]:
    """Return all networks in the order of the table."""
    return [*(image_network(name) for name in IMAGES), *other_networks()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the missing networks, and write the results after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[""], help="parts of names: only these")
    parser.add_argument("--again", action="store_true", help="measure networks that have results, too")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    file = chosen.results / "model_families.json"
    known = {result["network"]: result for result in json.loads(file.read_text())["results"]} if file.exists() else {}
    networks = all_networks()
    for network in networks:
        if any(part in network.name for part in chosen.networks) and (chosen.again or network.name not in known):
            known[network.name] = measure(network)
            results = [known[each.name] for each in networks if each.name in known]
            assert np.isfinite([result["loss"] for result in results if result["converts"]]).all()
            content = {"machine": machine(), "results": results}
            write_results("model_families", content, table(content), chosen.results)


def table(content: Mapping[str, Any]) -> str:
    """Return the results as text, one row per network, and the networks that have none."""
    results = content["results"]
    header = ["network", "converts", "in float", "MACs on integers", "differing integers", "differing free-running"]
    measured = {result["network"] for result in results}
    missing = [network.name for network in all_networks() if network.name not in measured]
    return (
        "Networks with random weights after one CPT step, on two random inputs "
        "(`python benchmarks/model_families.py`)\n\n"
        + markdown_table(header, [row(result) for result in results])
        + (f"\n\nNot measured yet: {'; '.join(missing)}." if missing else "")
        + f"\n\n{machine_line(content['machine'])}"
    )


if __name__ == "__main__":
    main()
