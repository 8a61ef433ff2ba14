"""Compare the latency of a bundle with the float network and with onnxruntime's own quantization of it."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cpt_deploy.bundle import Bundle
from cpt_deploy.bundle.runtime.tensors import checked_inputs
from cpt_deploy.tasks import SILENT, Origin, Reporter, task_named
from cpt_deploy.workflows.imported.float_models import ONNX_SUFFIX
from cpt_deploy.workflows.origins import find_origin
from cpt_deploy.workflows.references import float_classifier, source_network

if TYPE_CHECKING:
    from cpt_deploy.quantization import QuantizedModel
    from cpt_deploy.validation import BenchmarkReport

FLOAT, STATIC = "float32", "onnxruntime static"


def benchmark_bundle(
    path: Path,
    *,
    batches: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (1,),
    run: Path | None = None,
    seconds: float = 3.0,
    provider: str = "cpu",
    reporter: Reporter = SILENT,
) -> "BenchmarkReport":
    """Time a bundle of any task, the float32 export of its network, and onnxruntime's quantization of that export.

    The last two need the origin of the bundle, and PyTorch; without these only the bundle is measured.

    Args:
        path: The bundle.
        batches: Batch sizes, in rows per call: of its golden sample, which is repeated.
        threads: Numbers of threads of onnxruntime.
        run: The run of the bundle; None is the run whose directory contains it.
        seconds: Duration of the measurement of each batch size and thread count.
        provider: Execution provider of onnxruntime.
        reporter: Receives messages and progress.

    Raises:
        UsageError: If the bundle was not exported from the given run.
        MissingExtraError: If the installed onnxruntime lacks the provider.
        BundleError: If there is no bundle, or it is damaged.
    """
    from onnxruntime import SessionOptions

    from cpt_deploy.bundle.runtime.providers import choose_provider
    from cpt_deploy.validation import benchmark

    bundle = Bundle.open(path)
    choose_provider(SessionOptions(), provider)  # raises errors before the float network is created
    others = _others(bundle, run, reporter)
    with reporter.bar("timing", len(batches) * len(threads)) as bar:
        return benchmark(
            bundle,
            others,
            batches=list(batches),
            threads=list(threads),
            seconds=seconds,
            provider=provider,
            progress=bar.advance,
        )


def _others(bundle: Bundle, run: Path | None, reporter: Reporter) -> dict[str, bytes]:
    """Return the float32 export of the bundle's network and onnxruntime's quantization of it, or nothing."""
    origin = find_origin(bundle, run)
    if origin == Origin():
        reporter.note("only the bundle is measured: it is not in the directory of its run (see --run)")
        return {}
    if run is None and (find_spec("torch") is None or find_spec("onnx") is None):
        reporter.note(
            "only the bundle is measured: PyTorch and onnx, which export the float network, are not installed"
        )
        return {}
    from cpt_deploy.export import write_float_onnx
    from cpt_deploy.validation import static_quantization
    from cpt_deploy.validation.performance.benchmarking import as_float

    if origin.source is not None and origin.source.suffix == ONNX_SUFFIX:
        floats = float_classifier(bundle, origin.source)
    else:
        floats = write_float_onnx(_quantized(bundle, origin))
    # The times do not depend on the accuracy of the ranges, so a few samples are enough to calibrate.
    inputs = checked_inputs(*as_float(bundle, bundle.golden.inputs))
    return {FLOAT: floats, STATIC: static_quantization(floats, [inputs])}


def _quantized(bundle: Bundle, origin: Origin) -> "QuantizedModel":
    """Return the model that a bundle was frozen from; that of a float model has no ranges."""
    from cpt_deploy.quantization import QuantizationConfig, prepare
    from cpt_deploy.quantization.graph.signature import zeros_of
    from cpt_deploy.training import load_run
    from cpt_deploy.validation.performance.benchmarking import as_float

    if origin.run is not None:
        return load_run(origin.run).model
    assert origin.source is not None
    signature, _ = as_float(bundle, bundle.golden.inputs)
    network = source_network(task_named(bundle.task), bundle, origin.source)
    return prepare(network, zeros_of(signature, 2), QuantizationConfig()).eval()
