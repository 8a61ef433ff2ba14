"""`/predict`: images in, labelled predictions out."""

import functools
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from cpt_serving.access.api_keys import Scope
from cpt_serving.access.control import requires
from cpt_serving.adapters import Predicts
from cpt_serving.inference.engine import Engine
from cpt_serving.routes.examples import predict_body
from cpt_serving.service import Service
from cpt_serving.web.deadlines import request_deadline
from cpt_serving.web.records import note_inference, note_model
from cpt_serving.web.responses import JsonResponse
from cpt_serving.web.schemas import PredictAnswer, error_answers
from cpt_serving.web.uploads import parse_json, read_content

_ERRORS = (400, 404, 413, 415, 422, 429, 503, 504)
_PATHS = ("/predict", "/models/{model}/predict", "/models/{model}/versions/{version}/predict")

TopK = Annotated[int | None, Query(ge=1, description="number of classes for each image")]
ModelName = Annotated[str | None, Query(description="name of the model, if several are served")]


def predict_router(service: Service) -> APIRouter:
    """Return the route `/predict`, and the same under the name of a model."""
    router = APIRouter(tags=["predict"], dependencies=[requires(Scope.INFER)])

    async def predict(request: Request, top_k: TopK = None, model: ModelName = None) -> JsonResponse:
        """Classify one or several images.

        The body is a form with files, a raw image, or JSON: `{"image": base64}`, `{"images": [base64, ...]}` or
        `{"instances": [array, ...]}`. Image files are decoded as in training's evaluation: upright, the first frame,
        transparency on white. Arrays of integers are pixels 0..255, H x W x C, of any size; arrays with fractions
        are the model's normalised input, C x H x W.
        """
        return await _answer(service, service.find_predicting(model), request, top_k)

    async def predict_by(request: Request, model: str, version: str | None = None, top_k: TopK = None) -> JsonResponse:
        """Classify one or several images with the named model, in its newest version or that of the path."""
        return await _answer(service, service.find_predicting(model, version), request, top_k)

    for path in _PATHS:
        router.add_api_route(
            path,
            predict_by if "{model}" in path else predict,
            methods=["POST"],
            response_model=PredictAnswer,
            responses=error_answers(*_ERRORS),
            openapi_extra={"requestBody": predict_body()},
        )
    return router


async def _answer(service: Service, engine: Engine[Predicts], request: Request, top_k: int | None) -> JsonResponse:
    bundle, adapter, settings = engine.bundle, engine.model, service.settings
    started = time.perf_counter()
    deadline = request_deadline(settings)
    content = await read_content(request, settings)
    received = time.perf_counter()
    note_model(bundle)
    with engine.admit(deadline) as admission:
        if isinstance(content, bytes):
            parse = functools.partial(parse_json, content, max_rows=settings.max_rows)
            uploads = await admission.prepare(lambda _: parse())
        else:
            uploads = list(content)
        admission.claim(len(uploads))
        inputs = await admission.prepare(lambda work: adapter.read(uploads, work))
        prepared = time.perf_counter()
        inference = await admission.compute(inputs)
    note_inference(inference)
    predictions = adapter.predictions(inference.outputs, top_k or settings.top_k)
    timings = {
        "preprocess_ms": (prepared - received) * 1e3,
        "queue_ms": inference.queue_ms,
        "inference_ms": inference.inference_ms,
        "total_ms": (time.perf_counter() - started) * 1e3,
    }
    return JsonResponse(
        {
            "model": bundle.name,
            "version": bundle.version,
            "predictions": predictions,
            "timings": {name: round(value, 3) for name, value in timings.items()},
            "batch_rows": inference.batch_rows,
        }
    )
