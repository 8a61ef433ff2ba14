import errno
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import pytest
import yaml

from cpt_deploy.bundle import Bundle, EvaluationResult, write_bundle
from cpt_deploy.bundle import update_validation as update
from cpt_deploy.errors import BundleError

RESULT = EvaluationResult(0.9312, "onnxruntime", "fashion-mnist", samples=10_000, interval=(0.926, 0.936))


def contents_of(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def fail_on_write(monkeypatch, number):
    """Let the disk be full from the given call of fsync on."""
    calls = iter(range(1, 100))

    def full(_descriptor):
        if next(calls) >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def test_same_contents_give_the_same_bytes(tmp_path, bundle_contents):
    first = write_bundle(tmp_path / "a", contents=bundle_contents())
    second = write_bundle(tmp_path / "b", contents=bundle_contents())
    assert contents_of(first.path) == contents_of(second.path)


def test_a_bundle_is_replaced_as_a_whole(tmp_path, bundle_contents):
    write_bundle(tmp_path / "bundle", contents=bundle_contents())
    second = write_bundle(tmp_path / "bundle", contents=replace(bundle_contents("other"), recipe=None))
    assert second.name == "other"
    assert not (second.path / "train_recipe.yaml").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_permissions_follow_the_umask(bundle):
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(bundle.path.stat().st_mode) == 0o777 & ~umask
    assert stat.S_IMODE(bundle.onnx_path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("number", range(1, 12))
def test_a_full_disk_leaves_nothing_behind(tmp_path, bundle_contents, monkeypatch, number):
    fail_on_write(monkeypatch, number)
    with pytest.raises(BundleError, match="No space left on device") as caught:
        write_bundle(tmp_path / "bundle", contents=bundle_contents())
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 5, 11])
def test_a_full_disk_keeps_the_bundle_of_before(bundle, bundle_contents, monkeypatch, number):
    before = contents_of(bundle.path)
    fail_on_write(monkeypatch, number)
    with pytest.raises(BundleError):
        write_bundle(bundle.path, contents=bundle_contents("other"))
    assert contents_of(bundle.path) == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


def test_a_read_only_place_is_one_line(tmp_path, bundle_contents, monkeypatch):
    def denied(*_arguments, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.mkdir", denied)
    with pytest.raises(BundleError, match="Permission denied"):
        write_bundle(tmp_path / "bundle", contents=bundle_contents())


def test_parents_are_created_and_an_empty_directory_is_used(tmp_path, bundle_contents):
    assert write_bundle(tmp_path / "a" / "b", contents=bundle_contents()).path.is_dir()
    (tmp_path / "empty").mkdir()
    assert write_bundle(tmp_path / "empty", contents=bundle_contents()).path.is_dir()


@pytest.mark.parametrize("name", ["notes.txt", "src", "model.onnx"])
def test_a_directory_with_other_files_is_refused(tmp_path, bundle_contents, name):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / name).touch()
    with pytest.raises(BundleError, match=name):
        write_bundle(tmp_path / "work", contents=bundle_contents())
    assert (tmp_path / "work" / name).exists()


def test_notes_beside_a_bundle_are_not_deleted(bundle, bundle_contents):
    (bundle.path / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"notes\.txt"):
        write_bundle(bundle.path, contents=bundle_contents())


def test_a_file_is_not_replaced(tmp_path, bundle_contents):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="is a file"):
        write_bundle(tmp_path / "file", contents=bundle_contents())


def test_a_symbolic_link_stays_one(tmp_path, bundle_contents):
    (tmp_path / "v1").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "v1")
    write_bundle(tmp_path / "latest", contents=bundle_contents())
    assert (tmp_path / "latest").is_symlink()
    assert Bundle.open(tmp_path / "v1").name == "colours"


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "é"])
def test_names_that_do_not_fit_into_urls_are_refused(tmp_path, bundle_contents, name):
    with pytest.raises(BundleError, match="Expected a bundle's name"):
        write_bundle(tmp_path / "bundle", contents=bundle_contents(name))


@pytest.mark.parametrize("labels", [("a", "a", "b"), ("a", "", "b"), ("a", "b\nc", "d"), ("a", "b")], ids=str)
def test_unfit_labels_are_refused(tmp_path, bundle_contents, labels):
    contents = bundle_contents()
    with pytest.raises(BundleError, match=r"Expected .*label"):
        write_bundle(tmp_path / "b", contents=replace(contents, processor=replace(contents.processor, labels=labels)))


def test_the_bundles_own_keys_cannot_be_overridden(tmp_path, bundle_contents):
    with pytest.raises(ValueError, match="format_version"):
        write_bundle(tmp_path / "bundle", contents=replace(bundle_contents(), facts={"format_version": 9}))
    with pytest.raises(ValueError, match="graph"):
        write_bundle(tmp_path / "bundle", contents=replace(bundle_contents(), quantization={"graph": {}}))


def test_config_has_the_keys_of_other_readers(bundle):
    config = bundle.config
    assert config["id2label"] == {"0": "red", "1": "green", "2": "blue"}
    assert config["label2id"]["blue"] == 2
    assert (config["num_classes"], config["architecture"]) == (3, "colours")
    assert config["pretrained_cfg"]["input_size"] == [3, 8, 8]
    assert config["cpt"]["format_version"] == 3
    preprocessor = json.loads((bundle.path / "preprocessor_config.json").read_text())
    assert preprocessor["crop_size"] == {"height": 8, "width": 8}


def test_the_card_has_front_matter_and_facts(bundle):
    text = (bundle.path / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["pipeline_tag"] == "image-classification"
    assert front["datasets"] == ["colours"]
    assert "model-index" not in front
    assert "| bits | 8 |" in text


def test_validation_is_stored_and_refreshes_card_and_checksums(bundle):
    updated = update(bundle, {"passed": True}, [RESULT])
    assert updated.validation == {"passed": True}
    assert Bundle.open(bundle.path).validation == {"passed": True}
    text = (bundle.path / "README.md").read_text()
    (entry,) = yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"]
    assert entry["dataset"] == {"type": "fashion-mnist", "name": "fashion-mnist", "split": "test"}
    assert entry["metrics"] == [{"type": "accuracy", "value": 0.9312, "name": "Accuracy (onnxruntime)"}]
    assert "0.9312 (95 % interval 0.9260 to 0.9360)" in text
    assert not (bundle.path / "SHA256SUMS.pending").exists()


def test_validation_without_figures_keeps_the_card(bundle):
    before = (bundle.path / "README.md").read_bytes()
    update(bundle, {"passed": False})
    assert (bundle.path / "README.md").read_bytes() == before


def test_validation_keeps_other_files_of_the_directory(bundle):
    (bundle.path / "notes").mkdir()
    (bundle.path / "notes" / "today.txt").write_text("mine")
    update(bundle, {"passed": True}, [RESULT])
    assert (bundle.path / "notes" / "today.txt").read_text() == "mine"


def test_validation_can_be_repeated(bundle):
    update(bundle, {"run": 1}, [RESULT])
    assert update(bundle, {"run": 2}, [RESULT]).validation == {"run": 2}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_keeps_the_validation_of_before(bundle, monkeypatch, number):
    update(bundle, {"run": 1})
    before = contents_of(bundle.path)
    fail_on_write(monkeypatch, number)
    with pytest.raises(BundleError, match="No space left"):
        update(bundle, {"run": 2}, [RESULT])
    assert contents_of(bundle.path) == before


@pytest.mark.parametrize("renames", range(5))
def test_an_update_that_is_cut_short_leaves_a_bundle_that_opens(bundle, monkeypatch, renames):
    update(bundle, {"run": 1}, [RESULT])
    original, calls = os.replace, iter(range(100))

    def killed(source, target):
        # A killed process cleans nothing up, so what is cut off here is only the work itself.
        if next(calls) >= renames:
            raise KeyboardInterrupt
        original(source, target)

    monkeypatch.setattr("pathlib.Path.replace", killed)
    if renames < 4:
        with pytest.raises(KeyboardInterrupt):
            update(bundle, {"run": 2}, [replace(RESULT, value=0.5)])
    else:
        update(bundle, {"run": 2}, [replace(RESULT, value=0.5)])
    monkeypatch.undo()
    opened = Bundle.open(bundle.path)
    assert opened.validation in ({"run": 1}, {"run": 2})
    assert update(opened, {"run": 3}, [RESULT]).validation == {"run": 3}
    assert not [path for path in bundle.path.iterdir() if path.name.endswith((".tmp", ".pending"))]


def test_an_edited_file_is_noticed_during_an_interrupted_update_too(bundle):
    sums = (bundle.path / "SHA256SUMS").read_bytes()
    (bundle.path / "SHA256SUMS.pending").write_bytes(sums)
    (bundle.path / "README.md").write_text("edited")
    with pytest.raises(BundleError, match=r"README\.md"):
        Bundle.open(bundle.path)


def test_a_page_comes_and_goes_with_its_report(bundle):
    updated = update(bundle, {"passed": True}, page="<!DOCTYPE html>")
    assert (bundle.path / "validation.html").read_text() == "<!DOCTYPE html>"
    assert "validation.html" in (bundle.path / "SHA256SUMS").read_text()
    update(updated, {"passed": False})
    assert not (bundle.path / "validation.html").exists()
    assert Bundle.open(bundle.path).validation == {"passed": False}


def test_lists_of_numbers_take_one_line_and_texts_stay_as_they_are(bundle):
    report = {"cells": [[0, 1, -2.5e-07], []], "text": ["[\n 1\n]", "1"], "none": [None, True]}
    update(bundle, report)
    assert Bundle.open(bundle.path).validation == report
    assert "[0, 1, -2.5e-07]" in (bundle.path / "validation.json").read_text()


def test_validations_at_once_leave_one_of_them_whole(bundle):
    with ThreadPoolExecutor(8) as pool:
        reports = [{"number": number} for number in range(40)]
        validated = list(pool.map(lambda report: update(bundle, report, page=str(report)), reports))
    assert len(validated) == len(reports)
    kept = Bundle.open(bundle.path)  # which verifies every checksum
    assert kept.validation in reports
    assert (bundle.path / "validation.html").read_text() == str(kept.validation)
    assert not [path.name for path in bundle.path.iterdir() if path.name.startswith(".")]


def test_readers_never_see_half_of_a_validation(bundle):
    done = Event()

    def read():
        found = []
        while not done.is_set():
            found.append(Bundle.open(bundle.path).validation)
        return found

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for number in range(60):
                update(bundle, {"number": number}, page=str(number) if number % 2 else None)
        finally:
            done.set()
    numbers = [report["number"] for reader in readers for report in reader.result() if report]
    assert len(set(numbers)) > 1
