"""`prepare` with a trial deployment: the untrained network is frozen, exported and run before any training."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cpt_deploy import quantization
from cpt_deploy.errors import ConversionError
from cpt_deploy.quantization import QuantizationConfig, QuantizedModel
from cpt_deploy.quantization.calibration.calibrate import calibrating
from cpt_deploy.quantization.graph.signature import DynamicShapes, Example, ExampleInputs, States

if TYPE_CHECKING:
    from cpt_deploy.integer import IntegerGraph

#: Batch size of the trial: a size that neither tracing nor export used as an example.
_SAMPLES = 3

#: Tolerance in quantized values where real values are quantized: two float32 implementations may differ by this much.
_CODES = 2

#: Tolerance between the results of executor and onnxruntime, relative to the largest result. Rounding causes far
#: smaller differences, but in a network with random weights they grow from layer to layer.
_TOLERANCE = 0.25

#: Ratio to the largest value that differs above which equal results are constants, such as -1e9 of a mask: more than
#: that of the values of 8 bits.
_FAR = 256


@dataclass(frozen=True, slots=True)
class _Batch:
    """Random inputs on the CPU, and the shapes of the network's results for them, by name."""

    inputs: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]

    def first(self) -> "_Batch":
        """Return the first sample."""
        return _Batch(
            {name: x[:1] for name, x in self.inputs.items()},
            {name: (1, *shape[1:]) for name, shape in self.shapes.items()},
        )


def prepare(
    model: nn.Module,
    example_inputs: ExampleInputs,
    config: QuantizationConfig,
    *,
    dynamic_shapes: DynamicShapes = None,
    states: States = None,
) -> QuantizedModel:
    """Convert a float model to one that trains with cyclic precision and can be deployed.

    Every Conv, Linear and Embedding gets a quantized weight and a quantized output gradient. Every activation that
    integer execution needs gets a quantizer: after each layer (with its BatchNorm and ReLU, which fuse into it), sum,
    product, concatenation and average, at the inputs and at the outputs. Activations that only scheduled layers read
    follow the schedule; all others stay at max_bits, so the residual stream is never cut to min_bits. An Embedding has
    the precision of the first and the last layer; so have layers in modules that the model's attribute `ends` names.

    A model with operations that have no integer form (LayerNorm, softmax, GELU, parameters outside of layers) keeps
    them in float: quantizers are then inserted at the input of each Linear and around each Conv, and the operations
    between are those of the model (`has_float_operations`). The attribute `conversion` of the result says which of both
    was chosen, and why.

    With its quantizers off, the result is compared with the original model, hooks and replaced forwards included, on
    random batches in training and in evaluation. For that a copy of the model runs, with its hooks.

    Then follows a trial: the untrained network is frozen, written to ONNX and run by onnxruntime, so that a model that
    cannot be deployed is found before training. If the trial fails for an all-integer network, it is repeated with
    operations in float. There is no trial with the scheme "sbm", which trains only.

    Args:
        model: A float model that takes tensors (N, ...) and returns tensors (N, ...), alone or in tuples, lists,
            dictionaries or dataclasses; it is copied, not changed.
        example_inputs: A tensor, e.g. `torch.zeros(2, 3, 32, 32)`; a tuple of tensors, one for each argument; or a
            dictionary of tensors by the names of the arguments. float32 or int64 (token ids), the batch first. A single
            tensor and a single result are named "image" ("input_ids" if it has integers) and "logits" in `signature`;
            others have the names of arguments, keys and fields.
        config: Bounds of the bits, which layers are scheduled, and the quantizers.
        dynamic_shapes: Free dimensions beside the batch, as in `torch.export`: `{2: Dim("height")}` for one tensor, a
            tuple or dictionary of these for several; `8 * Dim("height")` where sizes have to be multiples. A size that
            only states have may be 0: `Dim("past", min=0)`.
        states: Pairs (input, output) of names: the output of a call is the input of the next, as the keys and values of
            a causal Transformer. In `signature` such an output is called by its input with "_after" at the end, and a
            single other output "logits". The maximum of a free size also bounds the sum of all: a context.

    Returns:
        The CPT model, at max_bits. Its calls have the arguments and the result structure of the float model.

    Raises:
        UsageError: If the example inputs are not such tensors, or `dynamic_shapes` or `states` do not fit them.
        ConversionError: If the model cannot be captured, frozen, written or run; names the operation and the module.
    """
    trial = try_out if config.scheme == "integers" else None
    return quantization.prepare(
        model, example_inputs, config, dynamic_shapes=dynamic_shapes, states=states, trial=trial
    )


def try_out(model: QuantizedModel, example: Example) -> None:
    """Freeze a prepared model with ranges from random inputs, export it, and compare onnxruntime with the executor.

    Args:
        model: A model that has seen no data; the model and the random-number state are unchanged afterwards.
        example: The inputs that it was prepared with; integers are drawn from their range.

    Raises:
        ConversionError: If a step fails, or onnxruntime computes different results.
    """
    from cpt_deploy.integer import freeze
    from cpt_deploy.onnx_graph.writer import write_onnx  # onnx and its exporter take long to import

    stage = "run on random inputs"
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            with _provisional_ranges(model, example, device) as batches:
                stage = "frozen to integers"
                graph = freeze(model)
                stage = "written to ONNX"
                file = write_onnx(graph)
                stage = "run by onnxruntime"
                _compare(graph, file, batches)
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
def _provisional_ranges(model: QuantizedModel, example: Example, device: torch.device) -> Iterator[list[_Batch]]:
    """Give every activation quantizer a range in the context; yield the random batches that the ranges come from."""
    generator = torch.Generator().manual_seed(0)
    given, made = ([tensor.name for tensor in tensors] for tensors in (model.signature.inputs, model.signature.outputs))
    batches: list[_Batch] = []
    quantizers = [quantizer for _, quantizer in model.quantizers()]
    try:
        with torch.no_grad(), calibrating(model, statistics=False):
            for sizes in model.signature.trials():
                inputs = example.random(_SAMPLES, 1.0, generator, sizes)
                result = model.network(*(x.to(device) for x in inputs))
                shapes = (tuple(x.shape) for x in ([result] if isinstance(result, Tensor) else result))
                batches.append(_Batch(dict(zip(given, inputs, strict=True)), dict(zip(made, shapes, strict=True))))
        for quantizer in quantizers:
            if not bool(
                torch.isfinite(quantizer.low) & torch.isfinite(quantizer.high) & (quantizer.low < quantizer.high)
            ):
                quantizer.low.fill_(-1.0)  # random inputs outside of a function's domain, or a dead layer
                quantizer.high.fill_(1.0)
        yield batches
    finally:
        for quantizer in quantizers:
            quantizer.reset()


def _compare(graph: "IntegerGraph", file: bytes, batches: list[_Batch]) -> None:
    """Run a file on batches and on one sample, and compare with the executor.

    Results are compared loosely, since a mismatch propagates to later layers. Where real values are quantized, the
    integers are compared, each computed from onnxruntime's own values before it.
    """
    from cpt_deploy.bundle.runtime.sessions import open_session
    from cpt_deploy.integer import IntegerExecutor
    from cpt_deploy.onnx_graph.outputs import add_outputs

    executor, entries = IntegerExecutor(graph), graph.entries
    session = open_session(add_outputs(file, _kinds(entries, graph)) if entries else file, threads=1)
    for batch in (*batches, batches[0].first()):
        named = [output.name for output in session.get_outputs()]
        made = session.run(named, {name: x.numpy() for name, x in batch.inputs.items()})
        results = dict(zip(named, map(torch.from_numpy, made), strict=True))
        for name, shape in batch.shapes.items():
            # The executor has no other shapes than the file: both follow the frozen network.
            if tuple(results[name].shape) != shape:
                raise ConversionError(
                    f"Expected a frozen network whose result {name!r} has the shape {shape}, as the network's own, "
                    f"but it has the shape {tuple(results[name].shape)}",
                    hint="an operation depends on the input's size: pass the example inputs without dynamic_shapes",
                )
        codes = {name: results[name] for name in entries}
        for name, own in executor.entries(batch.inputs, codes).items() if entries else ():
            worst = float((own - codes[name].to(own.dtype)).abs().max())
            if worst > _CODES:
                raise ConversionError(
                    f"Expected onnxruntime to compute the float operations before {name!r} as PyTorch does, "
                    f"but they differ by {worst:.0f} quantized values",
                    hint="one of these operations has another meaning in ONNX: write it in other operations",
                )
        with torch.no_grad():
            expected = executor.run(batch.inputs)
        for name, wanted in expected.items():
            got, rows = results[name], len(wanted)
            if got.shape != wanted.shape or not _are_close(got, wanted):
                raise ConversionError(
                    f"Expected onnxruntime to compute what the frozen network computes, but for {rows} inputs the "
                    f"results of {name!r} of shapes {tuple(got.shape)} and {tuple(wanted.shape)} differ",
                    hint="one of the model's operations has another meaning in ONNX: write it in other operations",
                )


def _are_close(results: Tensor, expected: Tensor) -> bool:
    finite = torch.isfinite(expected)
    if not torch.equal(finite, torch.isfinite(results)):
        return False
    differing = finite & (results != expected)
    if not differing.any():
        return True
    size = torch.maximum(results.abs(), expected.abs())
    largest = size[finite & (size <= _FAR * size[differing].max())].max()
    return bool((results - expected)[differing].abs().max() <= _TOLERANCE * largest)


def _kinds(names: Sequence[str], graph: "IntegerGraph") -> dict[str, int]:
    """Return the ONNX element types of quantized tensors."""
    from onnx import TensorProto

    return {name: TensorProto.INT8 if graph.tensors[name].signed else TensorProto.UINT8 for name in names}
