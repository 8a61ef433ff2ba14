"""The ONNX file in BentoML with its adaptive batching; base64 in JSON, because its HTTP API takes no raw tensors."""

import base64
import os

import bentoml
import numpy as np
import onnxruntime

SHAPE = tuple(map(int, os.environ["BENCH_SHAPE"].split(",")))


@bentoml.service(
    workers=1,
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class Classifier:
    """Float32 rows, each as base64 text, to logits."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BENCH_ROWS_PER_BATCH"]), max_latency_ms=60_000)
    def predict(self, rows: list[str], /) -> list[list[float]]:
        """Compute the rows of some requests."""
        content = b"".join(map(base64.b64decode, rows))
        inputs = np.frombuffer(content, np.float32).reshape(-1, *SHAPE)
        return self._session.run(None, {"image": inputs})[0].tolist()
