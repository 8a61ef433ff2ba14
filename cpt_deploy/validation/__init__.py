"""The gate between training and serving: accuracy and exactness of a bundle in its runtimes, and the evidence.

Imports PyTorch only for a bundle's integer executor or a trained model.
"""

from cpt_deploy.bundle.runtime.cpu import CpuInfo, read_cpu
from cpt_deploy.bundle.runtime.operators import float_operators, optimized_operators
from cpt_deploy.integer.accumulators import Accumulator, LayerSaturation, layer_saturation
from cpt_deploy.validation.accuracy.noninferiority import (
    MAX_DROP,
    NonInferiority,
    judge_losses,
    judge_pairs,
    tango_interval,
)
from cpt_deploy.validation.accuracy.reference import TRAINED_TEST, Recorded, Reference
from cpt_deploy.validation.accuracy.runtimes import PairResult, RuntimeResult
from cpt_deploy.validation.accuracy.samples import OTHER_DATA, Batch, Runtime, Samples, Scores, spread
from cpt_deploy.validation.accuracy.scoring import Accuracy, Perplexity, RSquared, Scoring
from cpt_deploy.validation.accuracy.statistics import mcnemar_exact, wilson_interval
from cpt_deploy.validation.gate import constant_reasons
from cpt_deploy.validation.integers.compare_integers import compare_integers
from cpt_deploy.validation.integers.comparison import TensorResult
from cpt_deploy.validation.integers.integer_model import bundled_integer_model
from cpt_deploy.validation.integers.intermediate_outputs import (
    add_intermediate_outputs,
    quantized_tensors,
    with_intermediate_outputs,
)
from cpt_deploy.validation.integers.saturation import (
    Portability,
    bundle_accumulators,
    bundle_portability,
    bundle_saturation,
    overflow_reasons,
)
from cpt_deploy.validation.onnx.constants import compare_constants
from cpt_deploy.validation.performance.benchmarking import BenchmarkReport, benchmark
from cpt_deploy.validation.performance.software import software_versions
from cpt_deploy.validation.performance.static_quantization import static_quantization
from cpt_deploy.validation.performance.timing import interleaved, median_ratio
from cpt_deploy.validation.report import ValidationReport
from cpt_deploy.validation.validate import validate

__all__ = [
    "MAX_DROP",
    "OTHER_DATA",
    "TRAINED_TEST",
    "Accumulator",
    "Accuracy",
    "Batch",
    "BenchmarkReport",
    "CpuInfo",
    "LayerSaturation",
    "NonInferiority",
    "PairResult",
    "Perplexity",
    "Portability",
    "RSquared",
    "Recorded",
    "Reference",
    "Runtime",
    "RuntimeResult",
    "Samples",
    "Scores",
    "Scoring",
    "TensorResult",
    "ValidationReport",
    "add_intermediate_outputs",
    "benchmark",
    "bundle_accumulators",
    "bundle_portability",
    "bundle_saturation",
    "bundled_integer_model",
    "compare_constants",
    "compare_integers",
    "constant_reasons",
    "float_operators",
    "interleaved",
    "judge_losses",
    "judge_pairs",
    "layer_saturation",
    "mcnemar_exact",
    "median_ratio",
    "optimized_operators",
    "overflow_reasons",
    "quantized_tensors",
    "read_cpu",
    "software_versions",
    "spread",
    "static_quantization",
    "tango_interval",
    "validate",
    "wilson_interval",
    "with_intermediate_outputs",
]
