"""Quantize a float ONNX network: choose, calibrate and build its integer graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cpt_deploy.errors import ConversionError, UsageError
from cpt_deploy.integer.accumulators import check_accumulators
from cpt_deploy.integer.graph import IntegerGraph
from cpt_deploy.onnx_graph.finding.choosing import Choice, choose
from cpt_deploy.onnx_graph.finding.patterns import Finder
from cpt_deploy.onnx_graph.finding.placement import Placement, placement_of
from cpt_deploy.onnx_graph.finding.stages import crossing_values, stages_of
from cpt_deploy.onnx_graph.quantizing.bits import bits_of
from cpt_deploy.onnx_graph.quantizing.equalizing import Equalizer
from cpt_deploy.onnx_graph.quantizing.lowering import Lowering
from cpt_deploy.onnx_graph.quantizing.precision import DEFAULT, Precision
from cpt_deploy.onnx_graph.quantizing.ranges import measure_ranges
from cpt_deploy.onnx_graph.quantizing.sparing import spare
from cpt_deploy.onnx_graph.reading.network import OnnxNetwork
from cpt_deploy.onnx_graph.reading.running import Runner, Sample, measure_shapes
from cpt_deploy.onnx_graph.reading.signatures import signature_of

#: Samples on which channels are compared before the ranges are measured on all.
EQUALIZING = 4
#: Samples on which errors of outputs are compared.
COMPARED = 2
#: Allowed difference of the network as it was read from the file, as a share of the greatest value of an output; of
#: outputs that are no real numbers, such as labels, the share that may be others.
_TOLERANCE = 1e-3
#: Allowed difference, as a multiple of that between onnxruntime with and without its optimizations.
_OWN = 10.0
#: Values of this size are small.
_SMALL = 1e-6
#: Kinds of numpy types of real and complex numbers.
_REAL = "fc"


@dataclass(frozen=True)
class QuantizedOnnx:
    """A quantized ONNX network.

    Attributes:
        graph: Its integer graph.
        placement: What of it runs on integers.
        samples: Number of samples that it was calibrated on.
    """

    graph: IntegerGraph
    placement: Placement
    samples: int


def quantize_onnx(network: OnnxNetwork, samples: Iterable[Sample], precision: Precision = DEFAULT) -> QuantizedOnnx:
    """Quantize a float network, with ranges of samples.

    Operations that have an integer form become one, where the rules of `docs/explanation/onnxruntime.md` let
    onnxruntime execute them in integers; every other operator stays as it is. Samples are used one at a time.

    Args:
        network: The network, as `read_onnx` reads it.
        samples: Inputs by name.
        precision: Bits and kinds of the integers.

    Raises:
        UsageError: If there are no samples, or they have other inputs than the network, or bits are given for layers
            that it does not have.
        ConversionError: If the network does not run on them, or computes no tensors.
    """
    rest = iter(samples)
    first = next(rest, None)
    if first is None:
        raise UsageError("Expected at least one sample to calibrate on, but got none")
    check_same(network, first)
    measured = measure_shapes(network, first)
    choice = choose(network, measured, Finder(network, measured).find())
    if crossing_values(network, measured, stages_of(network, choice.operations)):
        choice = Choice((), frozenset(), ())
    begin = [first, *islice(rest, EQUALIZING - 1)]
    choice, factors = Equalizer(network, measured, choice).equalized(begin)
    channels = [
        (operation.inputs[0], operation.channel_axis(len(measured[operation.inputs[0]].shape)))
        for operation in choice.operations
        if operation.has_weights
    ]
    bits = bits_of(network, choice, precision)
    ranges = measure_ranges(
        network, measured, {name: bits.quant_max(name) for name in choice.quantized}, channels, chain(begin, rest),
        factors=factors,
    )  # fmt: skip
    signature = signature_of(network, first, measured)

    def lower(choice: Choice) -> IntegerGraph:
        stages = stages_of(network, choice.operations)
        return Lowering(network, measured, choice, ranges, bits).run(stages, signature)

    choice = spare(network, measured, choice, lower, begin[:COMPARED])
    graph = lower(choice)
    check_accumulators(graph)
    return QuantizedOnnx(graph, placement_of(network, measured, choice), ranges.samples)


def check_same(network: OnnxNetwork, sample: Sample) -> None:
    """Check that a network computes what its file does.

    Raises:
        ConversionError: If it does not.
    """
    runner = Runner(network.original, network)
    expected, again = runner.run(sample), runner.run(sample)
    drawn = [name for name, wanted in expected.items() if not _is_near(wanted, again[name], 0.0)]
    if drawn:
        raise ConversionError(
            f"Expected {network.name} to compute the same each time, but its output {drawn[0]!r} changes between calls",
            hint="it draws random numbers: export the model in evaluation, or with these as an input",
        )
    got = Runner(network.to_model(), network).run(sample)
    differing = [name for name, wanted in expected.items() if not _is_near(wanted, got[name], 0.0)]
    if not differing:
        return
    # onnxruntime may differ from itself as much: the last digits of sums are amplified, as in sigmoids near 0
    plain = Runner(network.original, network, optimize=False).run(sample)
    for name in differing:
        if not _is_near(expected[name], got[name], _own_difference(expected[name], plain[name])):
            raise ConversionError(
                f"Expected {network.name} to compute the same as it was read, but its output {name!r} differs",
                hint="please report it with the file",
            )


def _own_difference(wanted: Any, plain: Any) -> float:
    """Return by how much results may differ because those of onnxruntime with and without its optimizations do."""
    if plain.shape != wanted.shape:
        return 0.0
    if wanted.dtype.kind not in _REAL:
        return _share_of_others(wanted, plain)
    own = float(np.nanmax(np.abs(plain - wanted), initial=0.0))
    return _OWN * own if np.isfinite(own) else 0.0


def _is_near(wanted: Any, got: Any, tolerance: float) -> bool:
    """Return whether results are the same.

    Real values may differ by a tolerance and a share of the greatest one. Of others, such as labels, which change where
    two scores are about equal, that share and a tolerance may be others.
    """
    if not isinstance(wanted, np.ndarray):
        return True
    if not isinstance(got, np.ndarray) or got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    if wanted.dtype.kind not in _REAL:
        return _share_of_others(wanted, got) <= _TOLERANCE + tolerance
    scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=_SMALL))
    return np.allclose(got, wanted, rtol=_TOLERANCE, atol=_TOLERANCE * scale + tolerance, equal_nan=True)


def _share_of_others(wanted: NDArray[Any], got: NDArray[Any]) -> float:
    """Return the share of values that differ."""
    return float(np.count_nonzero(wanted != got)) / max(wanted.size, 1)
