"""Clients of `cpt serve`, and by the Open Inference Protocol of other servers: blocking and for asyncio.

Both answer 429 and 503 with patience: they wait as long as the server asks and try again, within a deadline.
"""

from cpt_serving.client.answers import Answer, InferAnswer, ModelMetadata, TensorMetadata
from cpt_serving.client.asynchronous import AsyncPredictClient
from cpt_serving.client.blocking import PredictClient
from cpt_serving.client.exchange import Retries

__all__ = [
    "Answer",
    "AsyncPredictClient",
    "InferAnswer",
    "ModelMetadata",
    "PredictClient",
    "Retries",
    "TensorMetadata",
]
