"""gRPC's own services, for what does not know the protocol: `grpc.health.v1` for probes, and server reflection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from cpt_serving.grpc_api.calls import Calls, abort, until_the_end
from cpt_serving.inference.errors import ServingError
from cpt_serving.service import Service
from cpt_serving.shutdown import Shutdown
from cpt_serving.web.errors import RequestError

HEALTH = "grpc.health.v1.Health"
LIVENESS = "liveness"
"""What probes ask for that want to know whether the process answers; by other names readiness is meant."""

_LOOK_S = 1.0
_Status = health_pb2.HealthCheckResponse.ServingStatus


class Health:
    """Whether traffic may come, or with the name `liveness` whether the process answers.

    Args:
        service: Whose readiness it is.
        calls: What counts the calls.
        names: The services, which are ready together.
    """

    def __init__(self, service: Service, calls: Calls, names: tuple[str, ...]) -> None:
        self._service = service
        self._calls = calls
        self._names = ("", *names)

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the calls for a server to answer."""
        coding = {
            "request_deserializer": health_pb2.HealthCheckRequest.FromString,
            "response_serializer": health_pb2.HealthCheckResponse.SerializeToString,
        }
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, **coding),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, **coding),
        }
        return grpc.method_handlers_generic_handler(HEALTH, methods)

    def _status(self, name: str) -> int:
        if name == LIVENESS:
            return int(_Status.SERVING)
        if name not in self._names:
            return int(_Status.SERVICE_UNKNOWN)
        try:
            self._service.repository.require_ready()
        except ServingError:
            return int(_Status.NOT_SERVING)
        return int(_Status.SERVING)

    async def _check(self, request: Any, context: Any) -> Any:
        try:
            with self._calls.under_way(f"/{HEALTH}/Check", context):
                status = self._status(request.service)
                if status == _Status.SERVICE_UNKNOWN:
                    expected = ", ".join(name for name in (*self._names, LIVENESS) if name)
                    raise RequestError(404, f"Expected a service of {expected}, but got {request.service!r:.100}")
                return health_pb2.HealthCheckResponse(status=status)
        except RequestError as error:
            await abort(context, error)

    async def _watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        stopping = asyncio.ensure_future(self._service.shutdown.stopping())
        told = None
        try:
            with self._calls.under_way(f"/{HEALTH}/Watch", context, stream=True):
                while not stopping.done():
                    status = self._status(request.service)
                    if status != told:
                        yield health_pb2.HealthCheckResponse(status=status)
                        told = status
                    await asyncio.wait([stopping], timeout=_LOOK_S)
        finally:
            stopping.cancel()


class Reflection(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """The library's, whose streams are counted and end with the server."""

    def __init__(self, names: tuple[str, ...], calls: Calls, shutdown: Shutdown) -> None:
        super().__init__((*names, HEALTH, reflection.SERVICE_NAME))
        self._calls = calls
        self._shutdown = shutdown

    async def ServerReflectionInfo(  # noqa: N802  the library's name
        self, request_iterator: AsyncIterator[Any], unused_context: Any
    ) -> AsyncIterator[Any]:
        """Yield what clients ask of the services' descriptions."""
        method = f"/{reflection.SERVICE_NAME}/ServerReflectionInfo"
        with self._calls.under_way(method, unused_context, stream=True):
            requests = until_the_end(request_iterator, self._shutdown)
            async for answer in super().ServerReflectionInfo(requests, unused_context):
                yield answer
