"""The ONNX file in MLServer with its adaptive batching; base64 in JSON, as its REST API takes no binary tensors."""

import base64
import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

SHAPE = tuple(map(int, os.environ["BENCH_SHAPE"].split(",")))


class Classifier(MLModel):  # type: ignore[misc]
    """Float32 rows, each an element of a BYTES tensor as base64 text, to logits."""

    async def load(self) -> bool:
        """Load the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Compute the rows of some requests, merged by MLServer."""
        content = b"".join(map(base64.b64decode, payload.inputs[0].data.root))
        inputs = np.frombuffer(content, np.float32).reshape(-1, *SHAPE)
        logits = self._session.run(None, {"image": inputs})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("logits", logits)])
