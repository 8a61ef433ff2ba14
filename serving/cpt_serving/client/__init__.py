"""The client of `cpt serve`, blocking and for asyncio: images, text, and retries while the server is busy."""

from cpt_serving.client.clients import Answer, AsyncPredictClient, PredictClient

__all__ = ["Answer", "AsyncPredictClient", "PredictClient"]
