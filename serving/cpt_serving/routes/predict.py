"""`/predict`: rows of tensors or image files in, a prediction for each out."""

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.adapters import Adapter
from cpt_serving.answering import rendered
from cpt_serving.inference.engine import Engine
from cpt_serving.routes.examples import predict_body
from cpt_serving.service import Service
from cpt_serving.telemetry.records import note_inference, note_model
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import BODY_ERRORS, PredictAnswer, error_answers
from cpt_serving.web.uploads import read_content

_ERRORS = (*BODY_ERRORS, 404, 422, 429, 504)
_PATHS = ("/predict", "/models/{model}/predict", "/models/{model}/versions/{version}/predict")

TopK = Annotated[int | None, Query(ge=1, description="number of classes for each row, of a classifier")]
ModelName = Annotated[str | None, Query(description="name of the model, if several are served")]


def predict_router(service: Service) -> APIRouter:
    """Return the route `/predict`, and the same under the name of a model."""
    router = APIRouter(tags=["predict"], dependencies=[requires(Scope.INFER)])

    async def predict(request: Request, top_k: TopK = None, model: ModelName = None) -> JsonResponse:
        """Predict one or several rows.

        Tensors are JSON, by the names of the model's inputs: `{"inputs": {name: [row, ...]}}` or `{"instances":
        [{name: row}, ...]}`; the rows of the only input need no name. The prediction of a row holds its outputs by
        name.

        An image classifier takes a form with files, a raw image, or JSON: `{"image": base64}`, `{"images": [base64,
        ...]}` or `{"instances": [array, ...]}`, and answers the most probable classes. Image files are decoded as in
        training's evaluation: upright, the first frame, transparency on white. Arrays of integers are pixels 0..255,
        H x W x C, of any size; arrays with fractions are the model's normalised input, C x H x W.
        """
        return await _answer(service, service.find(model), request, top_k)

    async def predict_by(request: Request, model: str, version: str | None = None, top_k: TopK = None) -> JsonResponse:
        """Predict one or several rows with the named model, in its newest version or that of the path."""
        return await _answer(service, service.find(model, version), request, top_k)

    for path in _PATHS:
        router.add_api_route(
            path,
            predict_by if "{model}" in path else predict,
            methods=["POST"],
            response_model=PredictAnswer,
            responses=error_answers(*_ERRORS),
            openapi_extra={"requestBody": predict_body(service)},
        )
    return router


async def _answer(service: Service, engine: Engine[Adapter], request: Request, top_k: int | None) -> JsonResponse:
    bundle, adapter, settings = engine.bundle, engine.model, service.settings
    started = time.perf_counter()
    deadline = request_deadline(settings)
    content = await read_content(request, settings)
    received = time.perf_counter()
    note_model(bundle)
    with engine.admit(deadline) as admission:
        in_json = isinstance(content, bytes)
        given = await admission.prepare(lambda _: adapter.receive(content)) if in_json else adapter.receive(content)
        admission.claim(given.rows)
        inputs = await admission.prepare(given.read)
        prepared = time.perf_counter()
        inference = await admission.compute(inputs)
    note_inference(inference)
    outputs, classes = inference.outputs, top_k or settings.top_k
    timings = {
        "preprocess_ms": (prepared - received) * 1e3,
        "queue_ms": inference.queue_ms,
        "inference_ms": inference.inference_ms,
        "total_ms": (time.perf_counter() - started) * 1e3,
    }

    def answer() -> JsonResponse:
        return JsonResponse(
            {
                "model": bundle.name,
                "version": bundle.version,
                "predictions": adapter.predictions(outputs, classes),
                "timings": {name: round(value, 3) for name, value in timings.items()},
                "batch_rows": inference.batch_rows,
            }
        )

    return await rendered(engine, outputs, answer, deadline)
