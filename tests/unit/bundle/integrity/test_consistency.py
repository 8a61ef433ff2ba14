"""Files of a bundle that say otherwise than others, with checksums that hold."""

import hashlib
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt_deploy.bundle import Bundle, Preprocessing
from cpt_deploy.bundle.integrity.consistency import contradictions
from cpt_deploy.bundle.processors.image_processor import preprocessing_differences
from cpt_deploy.errors import BundleError


@pytest.fixture
def edit(shared_bundle, tmp_path):
    """Changes a JSON file of a copy, or its labels, and returns what contradicts."""

    def run(name, change):
        path = shutil.copytree(shared_bundle.path, tmp_path / "bundle") / name
        if name == "labels.txt":
            path.write_text(change)
        else:
            content = json.loads(path.read_text())
            change(content)
            path.write_text(json.dumps(content))
        sums = path.with_name("SHA256SUMS")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sums.write_text(sums.read_text().replace(shared_bundle.digests[name], digest))
        return contradictions(Bundle.open(path.parent))

    return run


def test_what_export_writes_agrees(shared_bundle):
    assert contradictions(shared_bundle) == []


OWN = {
    "mean": [0.9, 0.9, 0.9], "std": [0.1, 0.2, 0.3], "interpolation": "nearest", "resize": 12,
}  # fmt: skip


@pytest.mark.parametrize("key", OWN)
def test_each_setting_of_the_preprocessing_is_held_against_config_json(edit, key):
    found = edit("preprocessor_config.json", lambda content: content["cpt"].update({key: OWN[key]}))
    assert found[0].startswith("preprocessor_config.json is not as in config.json: ")
    assert f"{key} is {OWN[key]} instead of" in found[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("image_mean", [0.1] * 3), ("do_rescale", False), ("rescale_factor", 1.0), ("resample", 0), ("do_normalize", 0.5),
     ("crop_size", {"height": 9, "width": 8}), ("do_convert_rgb", None), ("size", {"shortest_edge": 9})],
)  # fmt: skip
def test_what_others_read_of_the_preprocessing_is_held_against_what_is_read_here(edit, key, value):
    found = edit("preprocessor_config.json", lambda content: content.update({key: value}))
    assert found == [f"{key} of preprocessor_config.json contradicts its entry cpt"]


def test_permuted_labels_are_found(edit):
    assert edit("labels.txt", "green\nred\nblue\n") == [
        "label_names, id2label, label2id of config.json contradict labels.txt and preprocessor_config.json"
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["id2label"].update({"0": "other"}),
        lambda content: content["label2id"].pop("red"),
        lambda content: content.update(num_classes=4),
        lambda content: content["pretrained_cfg"].update(mean=[0, 0, 0]),
        lambda content: content.pop("pretrained_cfg"),
        lambda content: content["cpt"].pop("inputs"),
        lambda content: content["cpt"]["inputs"].update(resize=9),
    ],
    ids=["id2label", "label2id", "classes", "timm's mean", "timm's keys", "what export recorded", "another record"],
)
def test_what_config_json_says_is_held_against_the_other_files(edit, change):
    assert edit("config.json", change)


def test_a_size_that_is_not_the_models_does_not_open(edit):
    def change(content):
        content["cpt"]["size"] = [9, 9]

    with pytest.raises(BundleError, match="as the preprocessing makes it"):
        edit("preprocessor_config.json", change)


@given(
    st.builds(
        Preprocessing,
        channels=st.just(1),
        size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
        mean=st.tuples(st.floats(-1, 1)),
        std=st.tuples(st.floats(0.1, 1)),
        resize=st.none() | st.integers(9, 20),
        interpolation=st.sampled_from(["bilinear", "bicubic", "nearest"]),
    ),
    st.data(),
)
def test_two_preprocessings_differ_where_a_field_does(one, data):
    assert preprocessing_differences(one, one, "x") == []
    fields = one.to_dict()
    key = data.draw(st.sampled_from(["mean", "std", "resize", "interpolation", "size"]))
    other = {"mean": [one.mean[0] + 1], "std": [one.std[0] * 2], "resize": 21, "size": [9, one.size[1] % 9 + 1],
             "interpolation": "nearest" if one.interpolation != "nearest" else "bicubic"}[key]  # fmt: skip
    (sentence,) = preprocessing_differences(Preprocessing.from_dict({**fields, key: other}), one, "the run")
    assert sentence.startswith(f"preprocessor_config.json is not as in the run: {key} is ")
