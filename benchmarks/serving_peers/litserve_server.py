"""The ONNX file in LitServe: raw bytes in and out, with its batching and its ZeroMQ queue."""

import os
from collections.abc import Iterable
from itertools import accumulate
from typing import Annotated

import litserve
import numpy as np
import numpy.typing as npt
import onnxruntime
from fastapi import Depends, Request, Response

Rows = npt.NDArray[np.float32]

SHAPE = tuple(map(int, os.environ["BENCH_SHAPE"].split(",")))


async def _body(request: Request) -> bytes:
    return await request.body()


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """Float32 rows as raw bytes to logits as raw bytes."""

    def setup(self, device: str) -> None:
        """Load the model in a worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )

    def decode_request(self, request: Annotated[bytes, Depends(_body)]) -> Rows:
        """Return the rows of one request."""
        return np.frombuffer(request, np.float32).reshape(-1, *SHAPE)

    def batch(self, inputs: list[Rows]) -> tuple[Rows, list[int]]:
        """Concatenate requests and remember where each ends."""
        return np.concatenate(inputs), list(accumulate(map(len, inputs)))

    def predict(self, inputs: tuple[Rows, list[int]]) -> list[Rows]:
        """Compute a batch and split it again."""
        rows, ends = inputs
        return np.split(self._session.run(None, {"image": rows})[0], ends[:-1])

    def unbatch(self, output: list[Rows]) -> Iterable[Rows]:
        """Return the logits of each request."""
        return output

    def encode_response(self, output: Rows) -> Response:
        """Return the answer to one request."""
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = Classifier(max_batch_size=int(os.environ["BENCH_REQUESTS_PER_BATCH"]), batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=60, fast_queue=True)
    server.run(
        host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), num_api_servers=1, generate_client_file=False,
        log_level="warning", access_log=False,
    )  # fmt: skip
