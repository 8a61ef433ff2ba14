"""`prepare` with a trial deployment: the untrained network is frozen, exported and run before training is paid for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpt_deploy import quantization
from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel
from cpt_deploy.quantization.calibration.calibrate import observing

if TYPE_CHECKING:
    from cpt_deploy.integer import IntegerGraph

#: Batch size of the trial: a size that neither tracing nor export used as an example.
_SAMPLES = 3

#: Tolerance in quantized values where real values are quantized: two float32 implementations may differ by this much.
_CODES = 2

#: Tolerance between the results of executor and onnxruntime, relative to the largest result. Rounding causes far
#: smaller differences, but in a network with random weights they grow from layer to layer.
_TOLERANCE = 0.25


def prepare(
    model: nn.Module,
    config: QuantizationConfig,
    input_shape: tuple[int, ...],
    *,
    input_dtype: torch.dtype = torch.float32,
) -> QuantizedModel:
    """Convert a float model to one that trains with cyclic precision and can be deployed.

    This is `quantization.prepare`, which documents the conversion, followed by a trial: the untrained network is
    frozen, written to ONNX and run by onnxruntime, so that a model that cannot be deployed is found before training is
    paid for. If the trial fails for an all-integer network, it is repeated with operations in float.

    Args:
        model: A float model with one input tensor and one output tensor (N, ...); it is copied, not changed.
        config: Bounds and fixed or scheduled precision.
        input_shape: Shape of one input without the batch dimension, e.g. (3, 32, 32).
        input_dtype: float32, or int64 for token ids.

    Returns:
        The CPT model, at max_bits.

    Raises:
        ConversionError: If the model cannot be captured, frozen, written or run; names the operation and the module.
    """
    return quantization.prepare(model, config, input_shape, input_dtype=input_dtype, trial=try_out)


def try_out(model: QuantizedModel) -> None:
    """Freeze a prepared model with ranges from random inputs, export it, and compare onnxruntime with the executor.

    Args:
        model: A model that has seen no data; the model and the random-number state are unchanged afterwards.

    Raises:
        ConversionError: If a step fails, or onnxruntime computes different results.
    """
    from cpt_deploy.integer import freeze
    from cpt_deploy.onnx_graph.writer import write_onnx  # onnx and its exporter take long to import

    stage = "run on random inputs"
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            with _provisional_ranges(model, device) as x:
                stage = "frozen to integers"
                graph = freeze(model)
                stage = "written to ONNX"
                file = write_onnx(graph)
                stage = "run by onnxruntime"
                _compare(graph, file, x.cpu())
        except ConversionError:
            raise
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConversionError(
                f"Expected a network that can be {stage}, but it failed before training: "
                f"{type(error).__name__}: {lines[0] if lines else 'no reason was given'}",
                hint="replace the operation in the model, or exclude it from the conversion",
            ) from error


@contextmanager
def _provisional_ranges(model: QuantizedModel, device: torch.device) -> Iterator[Tensor]:
    """Give every activation quantizer a range inside the context; yield the random inputs that the ranges come from."""
    generator = torch.Generator().manual_seed(0)
    given = next(node for node in model.network.graph.nodes if node.op == "placeholder")
    if given.meta.get("dtype", torch.float32).is_floating_point:
        x = torch.randn(_SAMPLES, *model.input_shape, generator=generator)
    else:
        x = torch.randint(0, 2, (_SAMPLES, *model.input_shape), generator=generator)
    x = x.to(device)
    edges = [edge for _, edge in model.edges()]
    try:
        with torch.no_grad(), observing(model, statistics=False):
            model(x)
        for edge in edges:
            if not bool(torch.isfinite(edge.low) & torch.isfinite(edge.high) & (edge.low < edge.high)):
                edge.low.fill_(-1.0)  # random inputs outside of a function's domain, or a dead layer
                edge.high.fill_(1.0)
        yield x
    finally:
        for edge in edges:
            edge.reset()


def _compare(graph: "IntegerGraph", file: bytes, x: Tensor) -> None:
    """Run a file on a batch and on a single input, and compare with the executor.

    Results are compared loosely, since a mismatch propagates to later layers. Where real values are quantized, the
    integers are compared, each computed from onnxruntime's own values before it.
    """
    from cpt_deploy.bundle.runtime.sessions import open_session
    from cpt_deploy.integer import IntegerExecutor
    from cpt_deploy.integer.graph import Quantize

    executor = IntegerExecutor(graph)
    entries = [operation.output for operation in graph.operations if isinstance(operation, Quantize)]
    session = open_session(_with_outputs(file, entries, graph) if entries else file, threads=1)
    for batch in (x, x[:1]):
        results = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        logits, codes = (
            torch.from_numpy(results[0]),
            dict(zip(entries, map(torch.from_numpy, results[1:]), strict=True)),
        )
        for name, own in executor.entries(batch, codes).items() if entries else ():
            worst = float((own - codes[name].to(own.dtype)).abs().max())
            if worst > _CODES:
                raise ConversionError(
                    f"Expected onnxruntime to compute the float operations before {name!r} as PyTorch does, "
                    f"but they differ by {worst:.0f} quantized values",
                    hint="one of these operations has another meaning in ONNX: write it in other operations",
                )
        with torch.no_grad():
            expected = executor(batch)
        if logits.shape != expected.shape or not _are_close(logits, expected):
            raise ConversionError(
                f"Expected onnxruntime to compute the same as the frozen network, but for {len(batch)} inputs the "
                f"results of shapes {tuple(logits.shape)} and {tuple(expected.shape)} differ",
                hint="one of the model's operations has another meaning in ONNX: write it in other operations",
            )


def _are_close(results: Tensor, expected: Tensor) -> bool:
    both = torch.isfinite(expected) & torch.isfinite(results)
    largest = float(expected[both].abs().max()) if both.any() else 0.0
    return not both.any() or float((results - expected)[both].abs().max()) <= _TOLERANCE * largest


def _with_outputs(file: bytes, names: list[str], graph: "IntegerGraph") -> bytes:
    import onnx

    model = onnx.load_model_from_string(file)
    for name in names:
        kind = onnx.TensorProto.INT8 if graph.tensors[name].signed else onnx.TensorProto.UINT8
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    serialized: bytes = model.SerializeToString()
    return serialized
