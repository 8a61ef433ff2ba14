"""The calls of the protocol over gRPC, each a thin layer over the service like its HTTP route."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2

from cpt_serving.adapters import Adapter, description
from cpt_serving.grpc_api.arriving import parsed
from cpt_serving.grpc_api.edge import SERVICE, STREAM, CallEdge, until_the_end
from cpt_serving.grpc_api.inference import model_infer
from cpt_serving.grpc_api.messages import plain
from cpt_serving.inference.engine import Engine, EngineState
from cpt_serving.inference.errors import ServingError
from cpt_serving.oip.metadata import server_metadata
from cpt_serving.oip.schemas import RepositoryParameters
from cpt_serving.oip.statistics import statistics_of
from cpt_serving.service import Service
from cpt_serving.telemetry.records import given_or_new_id
from cpt_serving.web.errors import RequestError
from cpt_serving.web.json_bodies import checked

Call = Callable[[Service, Any], Awaitable[Any]]


def handlers(service: Service, edge: CallEdge) -> grpc.GenericRpcHandler:
    """Return the handlers of all calls; calls of extensions without a handler are answered as unknown."""
    methods = {name: _unary(service, name, call) for name, call in _CALLS.items()}
    methods[STREAM.rpartition("/")[2]] = grpc.stream_stream_rpc_method_handler(
        functools.partial(_stream, service, edge),
        response_serializer=service_pb2.ModelStreamInferResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(SERVICE, methods)


async def server_live(_service: Service, _request: Any) -> Any:
    """Answer liveness: the process is running."""
    return service_pb2.ServerLiveResponse(live=True)


async def server_ready(service: Service, _request: Any) -> Any:
    """Answer whether the server is ready for traffic."""
    return service_pb2.ServerReadyResponse(ready=_holds(service.repository.models.require_ready))


async def model_ready(service: Service, request: Any) -> Any:
    """Answer whether a model is ready; an unknown model is not."""
    return service_pb2.ModelReadyResponse(ready=_holds(lambda: _find(service, request).require_ready()))


async def about_server(_service: Service, _request: Any) -> Any:
    """Return the name and version of the server and its extensions of the protocol."""
    return ParseDict(server_metadata().model_dump(), service_pb2.ServerMetadataResponse())


async def model_metadata(service: Service, request: Any) -> Any:
    """Return the inputs and outputs of a model."""
    bundle = _find(service, request).bundle
    found = description.model_metadata(bundle, service.repository.models.versions(bundle.name))
    return ParseDict(found.model_dump(exclude={"parameters"}), service_pb2.ModelMetadataResponse())


async def model_config(service: Service, request: Any) -> Any:
    """Return a model's configuration in Triton's form."""
    return ParseDict(
        {"config": description.model_config(_find(service, request).bundle, service.settings)},
        service_pb2.ModelConfigResponse(),
    )


async def model_statistics(service: Service, request: Any) -> Any:
    """Return the number of requests of one model or all models, and the durations of their parts."""
    keys = [(each.name, each.version) for each in service.repository.models.index()]
    if request.name:
        _find(service, request)
        keys = [key for key in keys if key[0] == request.name and request.version in ("", key[1])]
    found = statistics_of(service.metrics.samples(), keys)
    return ParseDict(found.model_dump(), service_pb2.ModelStatisticsResponse())


async def repository_index(service: Service, request: Any) -> Any:
    """Return the state of every model and version, or of those that are ready."""
    message = service_pb2.RepositoryIndexResponse()
    for each in service.repository.models.index():
        if each.state is EngineState.READY or not request.ready:
            message.models.add(name=each.name, version=each.version, state=each.state.value, reason=each.reason)
    return message


async def repository_load(service: Service, request: Any) -> Any:
    """Load a model, or reload it if its files changed."""
    await service.repository.load(request.model_name, _version(request))
    return service_pb2.RepositoryModelLoadResponse()


async def repository_unload(service: Service, request: Any) -> Any:
    """Unload a model once its requests are answered."""
    await service.repository.unload(request.model_name, _version(request))
    return service_pb2.RepositoryModelUnloadResponse()


_CALLS: dict[str, Call] = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ModelReady": model_ready,
    "ServerMetadata": about_server,
    "ModelMetadata": model_metadata,
    "ModelInfer": model_infer,
    "ModelConfig": model_config,
    "ModelStatistics": model_statistics,
    "RepositoryIndex": repository_index,
    "RepositoryModelLoad": repository_load,
    "RepositoryModelUnload": repository_unload,
}


def _unary(service: Service, name: str, call: Call) -> Any:
    kind = getattr(service_pb2, f"{name}Request")

    async def answer(data: bytes, _context: Any) -> Any:
        async with parsed(service, kind, data) as request:
            return await call(service, request)

    serializer = getattr(service_pb2, f"{name}Response").SerializeToString
    return grpc.unary_unary_rpc_method_handler(answer, response_serializer=serializer)


async def _stream(service: Service, edge: CallEdge, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
    """Answer the requests of a stream one by one; it ends when the server stops, but not when a request fails."""
    async for data in until_the_end(requests, service.shutdown):
        try:
            with edge.under_way(STREAM, context) as record:
                async with parsed(service, service_pb2.ModelInferRequest, data) as request:
                    if request.id:
                        record.request_id = given_or_new_id(request.id.encode())
                    answer = await model_infer(service, request)
        except RequestError as error:
            yield service_pb2.ModelStreamInferResponse(error_message=error.message)
        else:
            yield service_pb2.ModelStreamInferResponse(infer_response=answer)


def _version(request: Any) -> str | None:
    return checked(RepositoryParameters, plain(request.parameters)).version


def _find(service: Service, request: Any) -> Engine[Adapter]:
    return service.repository.models.find(request.name, request.version or None)


def _holds(requirement: Callable[[], None]) -> bool:
    try:
        requirement()
    except ServingError:
        return False
    return True
