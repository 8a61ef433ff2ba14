"""What a load test sends when the user brings nothing: the server's samples, noise, or random rows."""

from collections.abc import Mapping, Sequence
from typing import Literal

import httpx2
import numpy as np

from cpt_serving.client import PredictClient
from cpt_serving.client.addresses import is_loopback, normalize_address
from cpt_serving.loadtest.requests import (
    PreparedRequest,
    prepare_infer,
    prepare_predict,
    random_image,
    random_rows,
)

Protocol = Literal["binary", "json", "predict"]

_SEED = 0


def prepare(
    address: str,
    protocol: Protocol,
    *,
    rows: int,
    images: Sequence[bytes] = (),
    model: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> PreparedRequest:
    """Return the request of a load test; asks the server for its model.

    Args:
        address: The server's address.
        protocol: `predict` sends image files to `/predict`, the others random rows by the Open Inference Protocol.
        rows: Images or rows in the request.
        images: Image files, repeated as often as `rows` asks for; by default the bundle's samples, else noise.
        model: Which model, where several are served.
        headers: Further headers of every request.

    Raises:
        UsageError: If the address is none, or there is no such model.
        DataError: If the server cannot be reached.
    """
    generator = np.random.default_rng(_SEED)
    with PredictClient(address, headers=dict(headers or {})) as client:
        if protocol != "predict":
            metadata = client.metadata(model)
            content = random_rows(metadata, rows, generator)
            return prepare_infer(address, metadata, content, encoding=protocol, headers=headers)
        found = list(images) or _samples(address, model, headers, at_most=rows)
        found = found or [random_image(client.metadata(model), generator)]
    repeated = [found[index % len(found)] for index in range(rows)]
    return prepare_predict(address, repeated, model=model, headers=headers)


def _samples(address: str, model: str | None, headers: Mapping[str, str] | None, *, at_most: int) -> list[bytes]:
    """Return the bundle's samples, which servers of this project offer; none if this one does not."""
    url = normalize_address(address)
    query = {} if model is None else {"model": model}
    found: list[bytes] = []
    with httpx2.Client(base_url=url, headers=headers, trust_env=not is_loopback(url.host)) as client:
        while len(found) < at_most:
            response = client.get(f"/samples/{len(found)}.png", params=query)
            if response.status_code != httpx2.codes.OK:
                break
            found.append(response.content)
    return found
