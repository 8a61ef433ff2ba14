"""The client of `cpt serve`, blocking and for asyncio: images, text, and patience with a server that is busy."""

from cpt_serving.client.clients import Answer, AsyncPredictClient, PredictClient

__all__ = ["Answer", "AsyncPredictClient", "PredictClient"]
