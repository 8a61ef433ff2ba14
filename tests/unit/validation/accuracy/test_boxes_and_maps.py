"""Average precision and overlap against figures that follow by hand."""

import numpy as np
import pytest

from cpt_deploy.validation.accuracy.agreement import Agreement
from cpt_deploy.validation.accuracy.boxes import AveragePrecision, boxes_of
from cpt_deploy.validation.accuracy.maps import Areas, is_map


def boxes(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 6)


A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (50, 50, 60, 60)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (boxes((*A, 0.9, 1), (*B, 0.8, 1)), 1.0),
        (boxes((*A, 0.9, 1)), 0.5),
        (boxes((*C, 0.95, 1), (*A, 0.9, 1), (*B, 0.8, 1)), 2 / 3),  # precision 1/2 at recall 1/2, 2/3 at 1
        (boxes((*A, 0.9, 1), (*C, 0.85, 1), (*B, 0.8, 1)), 0.5 * 1 + 0.5 * 2 / 3),
        (boxes((*A, 0.9, 1), (*A, 0.85, 1), (*B, 0.8, 1)), 0.5 * 1 + 0.5 * 2 / 3),  # a box matches once
        (boxes((*A, 0.9, 2), (*B, 0.8, 2)), 0.0),  # of another class
        (boxes((0, 0, 10, 4.9, 0.9, 1)), 0.0),  # overlaps by 0.49
        (boxes((0, 0, 10, 5, 0.9, 1)), 0.5),
        (boxes(), 0.0),
    ],
)
def test_average_precision_of_two_objects(found: np.ndarray, wanted: float) -> None:
    collected = AveragePrecision()
    collected.add(boxes((*A, 0.9, 1), (*B, 0.5, 1), (*C, 0.1, 1)), found)  # the last is no object
    assert collected.objects == 2
    assert collected.value() == pytest.approx(wanted)


def test_the_mean_is_over_the_classes_that_the_float_model_finds() -> None:
    collected = AveragePrecision()
    assert collected.value() is None
    collected.add(boxes((*A, 0.9, 1)), boxes((*A, 0.9, 1), (*B, 0.9, 3)))
    collected.add(boxes((*A, 0.9, 2)), boxes())
    assert collected.value() == pytest.approx(0.5)


def test_outputs_of_detectors_are_recognised() -> None:
    corners, scores, labels = np.ones((7, 4), np.float32), np.ones(7, np.float32), np.ones(7, np.int64)
    (found,) = boxes_of({"labels": labels, "boxes": corners, "scores": scores}) or []
    assert found.shape == (7, 6)
    assert (
        len(boxes_of({"b": np.stack([corners] * 2), "s": np.stack([scores] * 2), "l": np.stack([labels] * 2)}) or [])
        == 2
    )
    assert boxes_of({"boxes": corners, "scores": scores}) is None
    assert boxes_of({"logits": np.ones((7, 4), np.float32)}) is None


def test_overlap_of_maps() -> None:
    wanted = np.zeros((1, 1, 2, 4), np.float32)
    got = wanted.copy()
    wanted[0, 0, 0] = 0.9
    got[0, 0, :, :2] = 0.6
    assert is_map(wanted)
    assert not is_map(np.zeros((1, 8, 1, 1), np.float32))
    probabilities = Areas()
    probabilities.add(wanted, got)
    assert probabilities.value() == pytest.approx(2 / 6)
    logits = Areas()
    logits.add(10 * wanted - 4, 10 * got - 4)  # above 0 where the probabilities are above 0.4
    assert logits.value() == pytest.approx(2 / 6)


def test_overlap_of_classes_is_a_mean() -> None:
    first = np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    second = np.array([[0, 0, 0, 1], [0, 0, 0, 1]])
    one_hot = [np.eye(3, dtype=np.float32)[each].transpose(2, 0, 1)[None] for each in (first, second)]
    areas = Areas()
    areas.add(*one_hot)
    assert areas.value() == pytest.approx((4 / 6 + 2 / 4) / 2)  # the third class does not occur


def test_an_output_of_another_shape_is_noise_and_never_equal():
    agreement = Agreement()
    agreement.add({"boxes": np.ones((3, 4), np.float32)}, {"boxes": np.ones((2, 4), np.float32)})
    (result,) = agreement.results()
    assert (result.sqnr_db, result.cosine, result.other_shapes) == (0.0, 0.0, 1)
    agreement.add({"boxes": np.zeros((0, 4), np.float32)}, {"boxes": np.ones((2, 4), np.float32)})
    (result,) = agreement.results()
    assert result.sqnr_db < 0
    assert result.other_shapes == 2


def test_channels_may_follow_from_the_input():
    areas = Areas()
    for channels in (2, 5, 3):
        maps = np.random.default_rng(channels).normal(size=(1, channels, 4, 4)).astype(np.float32)
        areas.add(maps, maps)
    assert areas.value() == 1


def test_values_that_are_not_finite_are_noise_where_only_one_model_has_them():
    wanted = np.array([[1.0, 2.0, -np.inf, 3.0]], np.float32)
    same, other = Agreement(), Agreement()
    same.add({"y": wanted}, {"y": wanted + np.array([0.1, 0, 0, 0], np.float32)})
    other.add({"y": wanted}, {"y": np.array([[1.0, np.inf, -np.inf, 3.0]], np.float32)})
    (near,), (far,) = same.results(), other.results()
    assert near.sqnr_db == pytest.approx(10 * np.log10(14 / 0.01), abs=0.01)
    assert far.sqnr_db == pytest.approx(10 * np.log10(14 / 4))
    assert near.cosine == pytest.approx(1, abs=1e-3)
