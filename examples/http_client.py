"""A client of `cpt serve` that needs only Python's standard library.

cpt serve my-bundle
python examples/http_client.py http://127.0.0.1:8000 image.png another.jpg
"""

import base64
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def predict(url: str, images: list[bytes], top_k: int = 1) -> list[list[dict[str, Any]]]:
    """Return the `top_k` most probable classes of each image file: label, index, probability."""
    body = json.dumps({"images": [base64.b64encode(image).decode() for image in images]}).encode()
    request = urllib.request.Request(
        f"{url}/predict?top_k={top_k}", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            predictions: list[list[dict[str, Any]]] = json.load(response)["predictions"]
            return predictions
    except urllib.error.HTTPError as error:
        # Every error of the server is {"error": ..., "request_id": ...}.
        raise SystemExit(f"{error.code}: {json.load(error)['error']}") from error


def main(url: str, *paths: str) -> None:
    """Print the class of each image."""
    answers = predict(url.rstrip("/"), [Path(path).read_bytes() for path in paths])
    for path, best in zip(paths, answers, strict=True):
        print(f"{path}: {best[0]['label']} ({best[0]['probability']:.1%})")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit("usage: http_client.py URL IMAGE...")
    main(*sys.argv[1:])
