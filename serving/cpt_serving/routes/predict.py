"""`/predict`: images in, labelled predictions out."""

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from cpt_deploy.bundle import top_k as most_probable
from cpt_serving.examples import predict_body
from cpt_serving.responses import JsonResponse
from cpt_serving.rows import to_rows
from cpt_serving.schemas import ErrorAnswer, PredictAnswer
from cpt_serving.service import Service
from cpt_serving.uploads import read_body

_ERRORS = (400, 413, 415, 422, 503)


def predict_router(service: Service) -> APIRouter:
    """Return the route `/predict`."""
    router = APIRouter(tags=["predict"])
    bundle, settings = service.bundle, service.settings

    @router.post(
        "/predict",
        response_model=PredictAnswer,
        responses={status: {"model": ErrorAnswer} for status in _ERRORS},
        openapi_extra={"requestBody": predict_body(bundle)},
    )
    async def predict(
        request: Request,
        top_k: Annotated[int | None, Query(ge=1, description="how many classes an image gets")] = None,
    ) -> JsonResponse:
        """Classify one or several images.

        The body is a form with files, a raw image, or JSON: `{"image": base64}`, `{"images": [base64, ...]}` or
        `{"instances": [array, ...]}`. Image files are decoded as in training's evaluation: upright, the first frame,
        transparency on white. Arrays of integers are pixels 0..255, H x W x C, of any size; arrays with fractions
        are the model's normalised input, C x H x W.
        """
        return JsonResponse(await _answer(service, request, top_k or settings.top_k))

    return router


async def _answer(service: Service, request: Request, top_k: int) -> dict[str, object]:
    bundle, engine, settings = service.bundle, service.engine, service.settings
    started = time.perf_counter()
    content = await read_body(request, max_rows=settings.max_rows)
    received = time.perf_counter()
    rows = await engine.decode(to_rows, content, bundle.preprocessing, settings)
    prepared = time.perf_counter()
    inference = await engine.infer(rows)
    predictions = most_probable(inference.logits, bundle.labels, top_k)
    timings = {
        "preprocess_ms": (prepared - received) * 1e3,
        "queue_ms": inference.queue_ms,
        "inference_ms": inference.inference_ms,
        "total_ms": (time.perf_counter() - started) * 1e3,
    }
    return {
        "model": bundle.name,
        "version": bundle.version,
        "predictions": predictions,
        "timings": {name: round(value, 3) for name, value in timings.items()},
    }
