"""Trained models that other packages ship: quantized on random inputs, and proven; `CPT_REAL_MODELS` names a folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from cpt_deploy.onnx_graph.quantizing import quantize_onnx
from cpt_deploy.onnx_graph.reading import read_onnx
from cpt_deploy.onnx_graph.writer import write_onnx
from cpt_deploy.validation.integers.compare_integers import compare_integers

FOLDER = os.environ.get("CPT_REAL_MODELS")
#: Input, its shape, and the least share of multiply-accumulates on integers.
MODELS = {
    "320n.onnx": ("images", (1, 3, 320, 320), 0.9),
    "ch_PP-OCRv4_det_infer.onnx": ("x", (1, 3, 128, 160), 0.9),
    "ch_PP-OCRv4_rec_infer.onnx": ("x", (1, 3, 48, 160), 0.9),
    "ch_ppocr_mobile_v2.0_cls_infer.onnx": ("x", (1, 3, 48, 192), 0.9),
    "layout_cdla.onnx": ("image", (1, 3, 800, 608), 0.9),
    "nmp.onnx": ("serving_default_input_2:0", (1, 43844, 1), 0.9),
}


@pytest.mark.slow
@pytest.mark.skipif(FOLDER is None, reason="CPT_REAL_MODELS names no folder with these files")
@pytest.mark.parametrize("name", MODELS)
def test_a_trained_model_is_quantized_and_proven(name: str) -> None:
    paths = sorted(Path(str(FOLDER)).rglob(name))
    if not paths:
        pytest.skip(f"{name} is not in the folder")
    key, shape, least = MODELS[name]
    rng = np.random.default_rng(0)
    given = [{key: rng.uniform(0, 1, shape).astype(np.float32)} for _ in range(2)]
    result = quantize_onnx(read_onnx(paths[0]), given)
    comparison = compare_integers(result.graph, write_onnx(result.graph), given[0])
    assert comparison.mismatches == 0
    assert max(comparison.outputs.values()) < 1e-4
    assert result.placement.integer_share >= least
