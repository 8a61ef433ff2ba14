"""The sweep of a classifier: accuracy, and latency compared with float32."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cpt_deploy import readable
from cpt_deploy.bundle import Bundle
from cpt_deploy.export import write_float_onnx
from cpt_deploy.tasks.interface import Entry
from cpt_deploy.tasks.sweeping import bits_cells, integers_cell
from cpt_deploy.training import load_run
from cpt_deploy.validation import compare_latency

FLOAT = "float32"


class ImageSweep:
    """See `SweptRun`.

    Args:
        run_dir: The run.
        limit: Number of test images; None is all.
    """

    columns: tuple[str, ...] = (
        "weights", "activations", "accuracy", "95 % interval", "integers that differ", "model.onnx (of float32)",
        "weights at their bits", "latency", "speed-up over float32",
    )  # fmt: skip
    quality_label = "accuracy in onnxruntime (%), 95 % interval"
    latency_label = "one image, one thread"

    def __init__(self, run_dir: Path, limit: int | None) -> None:
        self.run, self.limit = load_run(run_dir), limit

    @property
    def samples(self) -> int:
        """Number of test images."""
        images = int(self.run.report.data["test_images"])
        return min(self.limit or images, images)

    def figures(self, bundle: Bundle) -> dict[str, Any]:
        """Return accuracy in onnxruntime with its interval, and that of the trained model at max_bits."""
        assert bundle.validation is not None
        runtimes = {runtime["name"]: runtime for runtime in bundle.validation["runtimes"]}
        return {
            "accuracy": runtimes["onnxruntime"]["accuracy"],
            "interval_95": tuple(runtimes["onnxruntime"]["interval_95"]),
            "trained_accuracy": runtimes["trained"]["accuracy"],
        }

    def compare(self, bundles: Sequence[Bundle], rounds: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Measure the latency of one image on one thread, also in float32."""
        float_file = write_float_onnx(self.run.model)
        files: dict[str, Path | bytes] = {FLOAT: float_file}
        latencies = compare_latency(files | {str(b.path): b.onnx_path for b in bundles}, rounds=rounds)
        reference = {FLOAT: {"onnx_bytes": len(float_file), "milliseconds": latencies[FLOAT].milliseconds}}
        timed = [latencies[str(bundle.path)] for bundle in bundles]
        return reference, [{"milliseconds": each.milliseconds, "speedup": each.speedup} for each in timed]

    def summary(self, document: Mapping[str, Any]) -> str:
        """See `SweptRun`."""
        dataset, trained = document["dataset"], document["exports"][0]["trained_accuracy"]
        return (
            f"{document['run']} on {dataset['samples']:,} images of {dataset['name']} ({dataset['split']}); trained "
            f"model at max_bits {readable.share(trained)}; one image on one thread, float32 takes "
            f"{document[FLOAT]['milliseconds']:.3f} ms"
        )

    def row(self, entry: Entry, document: Mapping[str, Any]) -> tuple[str, ...]:
        """See `SweptRun`."""
        return (
            *bits_cells(entry),
            readable.share(entry["accuracy"]),
            " to ".join(readable.share(bound) for bound in entry["interval_95"]),
            integers_cell(entry),
            f"{readable.size(entry['onnx_bytes'])} ({entry['onnx_bytes'] / document[FLOAT]['onnx_bytes']:.3f})",
            readable.size(entry["weights_bytes"]),
            f"{entry['milliseconds']:.3f} ms",
            f"{entry['speedup']:.2f}x",
        )

    def quality(self, entry: Entry) -> tuple[float, float, float]:
        """Return accuracy in percent."""
        low, high = entry["interval_95"]
        return 100 * entry["accuracy"], 100 * low, 100 * high

    def trained_quality(self, document: Mapping[str, Any]) -> float:
        """See `SweptRun`."""
        return 100 * float(document["exports"][0]["trained_accuracy"])
