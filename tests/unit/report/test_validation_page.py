"""The page of a validation report: it stands alone, says what the report says, and cannot be broken by names."""

import re
import sys
from html.parser import HTMLParser

import pytest

from cpt_deploy.errors import MissingExtraError
from cpt_deploy.metric import ACCURACY
from cpt_deploy.report import render_validation_page

LABELS = ("<script>alert(1)</script>", "two $x$ dollars & $y$", "drei")


def make_report(**changes):
    accuracy = {"accuracy": 0.9, "interval_95": [0.85, 0.94], "finite": True}
    names = ("trained", "executor", "onnxruntime", "onnxruntime-unoptimized")
    pair = {"worst_difference": 0.5, "other_answers": 1, "only_first_right": 0, "only_second_right": 0}
    tensor = {"operator": "Conv", "values": 1000, "worst_difference": 0, "mismatches": 0}
    layer = {"name": "a", "activation_bits": 8, "worst_pair_sum": 40000, "channels": 4}
    report = {
        "bundle": "net<work>",
        "model_sha256": "f" * 64,
        "content_sha256": "d" * 64,
        "verdict": "passed",
        "undecided": [],
        "metric": ACCURACY.to_dict(),
        "drop_unit": "points",
        "non_inferiority": {"loss": 0.0, "low": -1.0, "high": 2.0},
        "served_outputs": {"values": 300, "differing": 0, "tolerance": None},
        "trained_codes": {"values": 300, "differing": 7, "worst": 3},
        "dataset": {
            "name": "things",
            "split": "test",
            "sha256": "e" * 64,
            "size": 200,
            "samples": 100,
            "unit": "images",
        },
        "gate": {"max_drop": 0.5, "require_exact": True, "allow_undecided": False},
        "reasons": [],
        "passed": True,
        "runtimes": [{"name": name, **accuracy} for name in names],
        "comparisons": [
            {"first": name, "second": "onnxruntime", "p_value": 0.25, **pair} for name in names if name != "onnxruntime"
        ],
        "tensors": [{"name": "a", **tensor}, {"name": "b", **tensor}],
        "unoptimized_tensors": [{"name": "a", **tensor}, {"name": "b", **tensor, "mismatches": 1}],
        "integers": {"compared": 2000, "mismatching": 0, "first_difference": None},
        "constants": {"compared": 321, "differences": []},
        "confusion": {
            "classes": 3,
            "samples": [50, 50, 0],
            "cells": [[0, 0, 50], [1, 1, 40], [1, 2, 10]],
            "omitted": 0,
        },
        "output_pairs": {
            "first": "trained",
            "second": "onnxruntime",
            "first_values": [1, 2],
            "second_values": [1, 2.5],
        },
        "golden": {"values": 80, "mismatches": 0, "worst_difference": 0},
        "graph": {"operators": {"QLinearConv": 2}, "float_operators": {}},
        "saturation": {
            "possible_without_vnni": True,
            "applies_to_this_cpu": False,
            "layers": [{**layer, "channels_at_risk": 2, "possible": True}],
        },
        "cpu": {"model": "CPU & Co", "architecture": "x86_64", "cores": 2, "flags": ["avx512_vnni"]},
        "versions": {"onnxruntime": "1.32.0"},
        "validated_at": "2026-01-02T03:04:05+00:00",
        "notes": ["a note"],
    }
    return {**report, **changes}


class Reader(HTMLParser):
    """Collects text and elements, and checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.elements, self._open = "", [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in {"meta", "br", "!doctype"}:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if not self._open or self._open[-1] != "style":
            self.text += data

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader._open == []
    return reader


@pytest.fixture(scope="module")
def page():
    return render_validation_page(make_report(), LABELS)


def test_the_page_says_what_the_report_says(page):
    text = read(page).text
    for part in (
        "Validation of net<work>", "Passed", "90.00 %", "85.00\u00a0% to 94.00\u00a0%", "of 2,000 in 2 tensors",
        "99.9000 %", "of 321 in model.onnx", "20.00 %", "CPU & Co", "avx512_vnni", "e" * 64, "f" * 64, "80 of 80",
        "1 of 1 layers", "d" * 64, "-2.00 to 1.00 points", "300 of 300 served output values", "at most 3 away",
        "a note", "onnxruntime 1.32.0", "2026-01-02 03:04:05 UTC", "0.25",
    ):  # fmt: skip
        assert part in text


def test_it_needs_nothing_but_itself(page):
    reader = read(page)
    assert {tag for tag, _ in reader.elements}.isdisjoint({"script", "link", "iframe", "object"})
    for _, attributes in reader.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)", page)


def test_it_can_be_read_without_seeing_it(page):
    reader = read(page)
    assert reader.named("html")[0]["lang"] == "en"
    pictures = reader.named("svg")
    assert len(pictures) == 4
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 30 for picture in pictures)
    assert len(reader.named("h1")) == 1
    assert all("scope" in heading for heading in reader.named("th"))
    identifiers = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_same_report_gives_the_same_page(page):
    assert render_validation_page(make_report(), LABELS) == page


def test_a_failure_comes_first_and_in_full():
    difference = {
        "tensor": "a",
        "part": "quantized weights",
        "values": 9,
        "differing": 1,
        "detail": "expected 3, but got 4",
    }
    report = make_report(
        passed=False,
        verdict="failed",
        reasons=["in tensor 'a', <1> differs"],
        non_inferiority={"loss": 1.5, "low": 1.0, "high": 2.0},
        constants={"compared": 321, "differences": [difference]},
    )
    text = read(render_validation_page(report, LABELS)).text
    assert text.index("in tensor 'a', <1> differs") < text.index("accuracy as served")
    assert "Failed" in text
    assert "-1.50 points" in text
    assert "expected 3, but got 4" in text


@pytest.mark.parametrize(
    ("change", "look"),
    [
        ({}, "passed"),
        ({"undecided": ["too few samples"]}, "undecided"),  # although the gate lets it pass
        ({"passed": False, "undecided": ["too few samples"]}, "undecided"),
        ({"passed": False, "undecided": ["too few samples"], "reasons": ["one integer differs"]}, "failed"),
    ],
    ids=["passed", "passed, undecided", "undecided", "failed and undecided"],
)
def test_what_cannot_be_decided_looks_neither_passed_nor_failed(change, look):
    assert f'<div class="verdict {look}">' in render_validation_page(make_report(**change), LABELS)


def test_what_was_not_measured_is_left_out():
    report = make_report(
        tensors=None, unoptimized_tensors=None, integers=None, constants=None, output_pairs=None, graph=None,
        non_inferiority=None, runtimes=make_report()["runtimes"][2:], comparisons=[],
        cpu=make_report()["cpu"] | {"flags": None},
    )  # fmt: skip
    reader = read(render_validation_page(report, LABELS))
    assert len(reader.named("svg")) == 2
    assert "Integers of each layer" not in reader.text


def test_many_classes_and_tensors_stay_one_picture():
    tensor = {"operator": "Conv", "values": 10, "worst_difference": 1, "mismatches": 1}
    tensors = [{"name": f"block_{i}_{'x' * 40}", **tensor} for i in range(90)]
    cells = [[i, (i * i) % 120, 3] for i in range(120)]
    report = make_report(
        tensors=tensors,
        unoptimized_tensors=tensors,
        confusion={"classes": 120, "samples": [6] * 120, "cells": cells, "omitted": 360},
    )
    page = render_validation_page(report, [f"class {i}" for i in range(120)])
    assert "360 images in rarer cells are left out" in page
    assert "50.00 %" in page
    right = 3 * sum(i == j for i, j, _ in cells)
    assert f"{right} of 720 samples lie on the diagonal" in page
    diagonal = {"classes": 120, "samples": [6] * 120, "cells": [[i, i, 3] for i in range(120)], "omitted": 360}
    page = render_validation_page(make_report(confusion=diagonal), [f"class {i}" for i in range(120)])
    assert "No sample was misclassified" not in page
    assert len(page) < 400_000


def test_values_that_are_not_finite_are_shown_as_unknown():
    report = make_report(
        non_inferiority={"loss": None, "low": None, "high": 2.0},
        metric={"name": "perplexity", "higher_is_better": False, "percent": False},
        runtimes=[
            {"name": "trained", "perplexity": 3.0, "interval_95": [2.0, 4.0]},
            {"name": "onnxruntime", "perplexity": None, "interval_95": [None, None]},
        ],
        passed=False,
    )
    reader = read(render_validation_page(report, LABELS))
    assert "95 % interval unknown to 2.00" in reader.text


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError) as caught:
        render_validation_page(make_report(), LABELS)
    assert "'.[train]'" in caught.value.hint
