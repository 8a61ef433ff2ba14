"""gRPC's standard health service, `grpc.health.v1`, for probes that do not know the Open Inference Protocol."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cpt_serving.grpc_api.edge import SERVICE
from cpt_serving.inference.errors import ServingError
from cpt_serving.service import Service
from cpt_serving.web.errors import RequestError

LIVENESS = "liveness"
"""Service name by which probes ask for liveness; the other names stand for readiness."""

_LOOK_S = 1.0
_Status = health_pb2.HealthCheckResponse.ServingStatus


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Health service: readiness, or with the name `liveness` whether the process answers.

    The library's implementation would need a call for each change; this one reads the present state.

    Args:
        service: The service whose readiness is reported.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  the library's name
        """Return the status of a name, or refuse an unknown name."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            raise RequestError(404, f"Expected a service of {SERVICE}, {LIVENESS}, but got {request.service!r:.100}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802  the library's name
        """Yield the status of a name now and after each change."""
        told = None
        while True:
            if (status := self._status(request.service)) != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await asyncio.sleep(_LOOK_S)

    def _status(self, name: str) -> int:
        if name == LIVENESS:
            return int(_Status.SERVING)
        if name not in ("", SERVICE):
            return int(_Status.SERVICE_UNKNOWN)
        try:
            self._service.repository.models.require_ready()
        except ServingError:
            return int(_Status.NOT_SERVING)
        return int(_Status.SERVING)
