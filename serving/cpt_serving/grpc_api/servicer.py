"""The calls of the protocol over gRPC, each as thin as its HTTP route, and how errors leave them."""

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from cpt_deploy.errors import CptError
from cpt_serving.adapters import Adapter
from cpt_serving.grpc_api.inference import model_infer
from cpt_serving.grpc_api.messages import plain
from cpt_serving.inference.engine import Engine, EngineState
from cpt_serving.inference.errors import ServingError
from cpt_serving.oip import metadata
from cpt_serving.oip.repository import changed_version
from cpt_serving.service import Service
from cpt_serving.web.errors import RequestError, as_request_error

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"

_STREAM = "ModelStreamInfer"

_CLIENT_GONE = 499

Call = Callable[[Service, Any], Awaitable[Any]]

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""gRPC's codes for the statuses that requests end with over HTTP."""


def handlers(service: Service) -> grpc.GenericRpcHandler:
    """Return the calls for a server to answer; those of extensions that are not here are answered as unknown."""
    methods = {name: _unary(service, name, call) for name, call in _CALLS.items()}
    methods[_STREAM] = grpc.stream_stream_rpc_method_handler(
        functools.partial(_stream, service),
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelStreamInferResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


async def server_live(_service: Service, _request: Any) -> Any:
    """The process answers."""
    return service_pb2.ServerLiveResponse(live=True)


async def server_ready(service: Service, _request: Any) -> Any:
    """Whether traffic may come."""
    return service_pb2.ServerReadyResponse(ready=_holds(service.repository.require_ready))


async def model_ready(service: Service, request: Any) -> Any:
    """Whether a model can be asked; one that is not there cannot."""
    return service_pb2.ModelReadyResponse(ready=_holds(lambda: _find(service, request).require_ready()))


async def server_metadata(_service: Service, _request: Any) -> Any:
    """Who serves, and which extensions of the protocol it knows."""
    return ParseDict(metadata.server_metadata(), service_pb2.ServerMetadataResponse())


async def model_metadata(service: Service, request: Any) -> Any:
    """What a model takes and returns."""
    adapter = _find(service, request).model
    facts = metadata.model_metadata(adapter, service.repository.versions(adapter.bundle.name))
    return ParseDict(facts, service_pb2.ModelMetadataResponse())


async def model_config(service: Service, request: Any) -> Any:
    """A model's configuration in Triton's form."""
    config = metadata.model_config(_find(service, request).model)
    return ParseDict({"config": config}, service_pb2.ModelConfigResponse())


async def model_statistics(service: Service, request: Any) -> Any:
    """How many requests a model had, or every model, and how long each part of them took."""
    keys = [(each.name, each.version) for each in service.repository.index()]
    if request.name:
        _find(service, request)
        keys = [key for key in keys if key[0] == request.name and request.version in ("", key[1])]
    return ParseDict(service.statistics.render(keys), service_pb2.ModelStatisticsResponse())


async def repository_index(service: Service, request: Any) -> Any:
    """The state of every model and version, or of those that are ready."""
    message = service_pb2.RepositoryIndexResponse()
    for each in service.repository.index():
        if each.state is EngineState.READY or not request.ready:
            message.models.add(name=each.name, version=each.version, state=each.state.value, reason=each.reason)
    return message


async def repository_load(service: Service, request: Any) -> Any:
    """Load a model, or load it again if its files changed."""
    await service.repository.load(request.model_name, changed_version(plain(request.parameters)))
    return service_pb2.RepositoryModelLoadResponse()


async def repository_unload(service: Service, request: Any) -> Any:
    """Take a model out of service once its requests are answered."""
    await service.repository.unload(request.model_name, changed_version(plain(request.parameters)))
    return service_pb2.RepositoryModelUnloadResponse()


_CALLS: dict[str, Call] = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ModelReady": model_ready,
    "ServerMetadata": server_metadata,
    "ModelMetadata": model_metadata,
    "ModelInfer": model_infer,
    "ModelConfig": model_config,
    "ModelStatistics": model_statistics,
    "RepositoryIndex": repository_index,
    "RepositoryModelLoad": repository_load,
    "RepositoryModelUnload": repository_unload,
}


def _unary(service: Service, name: str, call: Call) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        try:
            return await _answered(service, name, call, request)
        except RequestError as error:
            after_s = error.headers.get("Retry-After")
            # What gRPC's retry policies know as the time to wait.
            trailing = () if after_s is None else (("grpc-retry-pushback-ms", f"{after_s}000"),)
            await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), error.message, trailing)

    return grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=getattr(service_pb2, f"{name}Request").FromString,
        response_serializer=getattr(service_pb2, f"{name}Response").SerializeToString,
    )


async def _stream(service: Service, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
    """Answer the requests of a stream one after the other; one that fails does not end it, the server's end does."""
    stopping = asyncio.ensure_future(service.shutdown.stopping())
    try:
        while (request := await _next(requests, stopping)) is not None:
            try:
                answer = await _answered(service, _STREAM, model_infer, request)
            except RequestError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=error.message)
            else:
                yield service_pb2.ModelStreamInferResponse(infer_response=answer)
    finally:
        stopping.cancel()


async def _next(requests: AsyncIterator[Any], stopping: "asyncio.Future[None]") -> Any:
    """Return the next request of a stream, or `None` if none comes any more or the server stops before it."""
    coming = asyncio.ensure_future(anext(requests, None))
    await asyncio.wait([coming, stopping], return_when=asyncio.FIRST_COMPLETED)
    if coming.done():
        return coming.result()
    coming.cancel()
    return None


async def _answered(service: Service, name: str, call: Call, request: Any) -> Any:
    """Return the answer to a request, and count it; those of a stream count one by one.

    Raises:
        RequestError: With the status that it would end with over HTTP.
    """
    status, started = _CLIENT_GONE, time.perf_counter()
    service.metrics.request_started()
    try:
        answer = await call(service, request)
        status = 200
        return answer
    except (RequestError, CptError) as error:
        meant = as_request_error(error)
        status = meant.status
        raise meant from error
    except Exception as error:
        # As over HTTP: a bug must cost one request, and tell its client nothing of the server's inside.
        status = 500
        logger.exception("%s failed", name)
        raise RequestError(status, "Internal error; the server's log has it") from error
    finally:
        seconds = time.perf_counter() - started
        service.metrics.request_finished(f"/{SERVICE}/{name}", "gRPC", status, seconds)


def _find(service: Service, request: Any) -> Engine[Adapter]:
    return service.repository.find(request.name, request.version or None)


def _holds(requirement: Callable[[], None]) -> bool:
    try:
        requirement()
    except ServingError:
        return False
    return True
