"""Measure the peak memory of a model in onnxruntime, in a separate process.

The process is `python -m cpt_deploy.validation.performance.peak_memory FILE BATCH THREADS PROVIDER`.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cpt_deploy.bundle import OnnxRuntimeModel
from cpt_deploy.errors import BundleError

STATUS = Path("/proc/self/status")
_RUNS = 5


@dataclass(frozen=True)
class PeakMemory:
    """Peak physical memory of a process, in bytes.

    Args:
        peak: Peak while the model was loaded and executed.
        before: Peak before that, with Python, NumPy and onnxruntime loaded.
    """

    peak: int
    before: int

    @property
    def of_model(self) -> int:
        """Memory that the model added."""
        return self.peak - self.before


def measure_peak_memory(model: Path, *, batch: int, threads: int, provider: str = "cpu") -> PeakMemory | None:
    """Load and run a model in a new process and return its peak of memory; `None` if the system does not report it.

    Args:
        model: The ONNX file.
        batch: Rows per call.
        threads: Threads of onnxruntime.
        provider: Its execution provider; GPU memory is not included.

    Raises:
        BundleError: If onnxruntime cannot run the file.
    """
    if not STATUS.is_file():
        return None
    arguments = [str(model), str(batch), str(threads), provider]
    line = [sys.executable, "-m", "cpt_deploy.validation.performance.peak_memory", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BundleError(f"Expected to run {model} for its memory, but got: {reason}")
    return PeakMemory(**json.loads(done.stdout))


def _peak(status: Path = STATUS) -> int:
    """Return this process's peak of resident memory.

    Not from `getrusage`, whose peak on Linux starts with that of the parent process.
    """
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def _main(file: str, batch: int, threads: int, provider: str) -> None:
    import onnxruntime  # noqa: F401  so that its libraries do not count as the model's

    before = _peak()
    model = OnnxRuntimeModel(Path(file), threads=threads, provider=provider)
    signature = model.signature
    inputs = {
        tensor.name: np.zeros((batch, *shape), tensor.dtype)
        for tensor, shape in zip(signature.inputs, signature.input_shapes(), strict=True)
    }
    for _ in range(_RUNS):
        model.run(inputs)
    sys.stdout.write(json.dumps({"peak": _peak(), "before": before}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
