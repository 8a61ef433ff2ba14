"""A trained network behind the server: the same bits in every batch, and no service without evidence."""

import asyncio
import json

import numpy as np
import pytest

from cpt_deploy.bundle import Bundle, OnnxRuntimeModel
from cpt_deploy.data import load_images
from cpt_serving import load_settings
from cpt_serving.repository.model_repository import ModelRepository


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_whatever_batch_it_rides_in(bundle, threads):
    opened = Bundle.open(bundle)
    images = load_images("digits", split="test")
    rows = opened.processor.inputs([images.image(index) for index in range(96)])["image"]
    model = OnnxRuntimeModel(opened.onnx_path)
    alone = np.concatenate([model.run({"image": row[None]})["logits"] for row in rows])
    random = np.random.default_rng(0)

    async def scenario():
        settings = load_settings(bundle=bundle, concurrency=2, threads=threads, max_batch=13)
        repository = ModelRepository(settings)
        await repository.start()
        engine, sizes = repository.models.find(), set()
        for _ in range(20):
            cuts = np.sort(random.choice(np.arange(1, 96), size=random.integers(1, 40), replace=False))
            parts = np.split(rows, cuts)
            inferences = await asyncio.gather(*(engine.batcher.submit({"image": part}) for part in parts))
            assert (
                np.concatenate([inference.outputs["logits"] for inference in inferences]).tobytes() == alone.tobytes()
            )
            sizes |= {inference.batch_rows for inference in inferences}
        repository.close()
        # Otherwise nothing was batched, and nothing tested.
        assert len(sizes) > 5

    asyncio.run(scenario())


def test_with_require_evidence_only_a_bundle_that_passed_as_it_is_is_served(cpt, start, bundle_copy):
    sums = bundle_copy / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines() if "validation." not in line]
    sums.write_text("".join(f"{line}\n" for line in kept))
    serve = ("serve", bundle_copy, "--require-evidence", "--port", 0, "--json")
    assert "no validation.json" in cpt(*serve, code=4).stderr
    cpt("validate", bundle_copy, "--data", "digits", "--limit", 64, "--quiet")
    process = start(*serve)
    try:
        assert json.loads(process.stdout.readline())["url"].startswith("http://127.0.0.1:")
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 0
