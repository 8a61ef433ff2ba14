import hashlib
import subprocess
from dataclasses import replace

import pytest

from cpt_deploy.bundle import Bundle, read_evidence, require_evidence, update_validation
from cpt_deploy.errors import BundleError, ValidationFailedError


def report(bundle, **change):
    """What `cpt validate` writes, as far as it is read."""
    return {
        "content_sha256": bundle.content_sha256,
        "verdict": "passed",
        "passed": True,
        "reasons": [],
        "dataset": {"name": "digits", "samples": 355},
        "metric": {"name": "accuracy", "higher_is_better": True, "percent": True},
        "runtimes": [
            {"name": "trained", "accuracy": 1.0, "interval_95": [0.9, 1.0]},
            {"name": "onnxruntime", "accuracy": 0.98, "interval_95": [0.97, 0.99]},
        ],
        "integers": {"compared": 100, "mismatching": 0},
        "validated_at": "2026-01-01T00:00:00+00:00",
        **change,
    }


def test_evidence_of_the_same_file_is_accepted_and_read(bundle):
    evidence = require_evidence(update_validation(bundle, report(bundle)))
    assert (evidence.dataset, evidence.samples, evidence.value) == ("digits", 355, 0.98)
    assert evidence.interval_95 == (0.97, 0.99)
    assert (evidence.compared_integers, evidence.mismatching_integers) == (100, 0)


@pytest.mark.parametrize("name", ["labels.txt", "preprocessor_config.json", "config.json", "quantization.json"])
def test_evidence_holds_only_as_long_as_each_file_that_changes_an_answer(bundle, name):
    validated = update_validation(bundle, report(bundle), page="<html>")
    assert validated.content_sha256 == bundle.content_sha256
    path = validated.path / name
    path.write_bytes(b"green\nred\nblue\n" if name == "labels.txt" else path.read_bytes() + b" ")
    digest, sums = hashlib.sha256(path.read_bytes()).hexdigest(), validated.path / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(validated.digests[name], digest))
    changed = Bundle.open(validated.path)
    assert changed.sha256 == bundle.sha256
    with pytest.raises(ValidationFailedError, match="a file was changed after the validation"):
        require_evidence(changed)


def test_the_digest_of_all_files_is_what_two_commands_of_the_shell_give(bundle):
    updated = update_validation(bundle, report(bundle), page="<html>")
    pattern = "  (README.md|validation.json|validation.html)$"
    command = f"grep -vE '{pattern}' SHA256SUMS | sha256sum"
    done = subprocess.run(["bash", "-c", command], cwd=updated.path, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == updated.content_sha256


def test_missing_evidence_is_refused(bundle):
    assert read_evidence(bundle) is None
    with pytest.raises(ValidationFailedError, match=r"no validation\.json") as caught:
        require_evidence(bundle)
    assert "cpt validate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"content_sha256": "0" * 64}, "a file was changed after the validation"),
        ({"passed": False, "reasons": ["accuracy dropped by 3.00 points"]}, "accuracy dropped by 3.00 points"),
        ({"passed": False}, "no reason is given"),
        ({"reasons": ["something"]}, "something"),
    ],
    ids=str,
)
def test_evidence_that_does_not_vouch_for_the_file_is_refused(bundle, change, expected):
    with pytest.raises(ValidationFailedError, match=expected):
        require_evidence(update_validation(bundle, report(bundle, **change)))


@pytest.mark.parametrize(
    "missing", ["content_sha256", "verdict", "passed", "reasons", "dataset", "runtimes", "integers"]
)
def test_other_content_is_no_evidence(bundle, missing):
    content = report(bundle)
    del content[missing]
    with pytest.raises(BundleError, match=missing):
        require_evidence(replace(bundle, validation=content))
    with pytest.raises(BundleError):
        require_evidence(replace(bundle, validation={"runtimes": 1}))


def test_whether_it_passed_has_to_be_said(bundle):
    with pytest.raises(BundleError, match="passed is 'yes'"):
        require_evidence(replace(bundle, validation=report(bundle, passed="yes")))


def test_integers_that_were_not_compared_are_none(bundle):
    evidence = require_evidence(replace(bundle, validation=report(bundle, integers=None)))
    assert (evidence.compared_integers, evidence.mismatching_integers) == (None, None)


def test_what_was_not_measured_is_none(bundle):
    evidence = read_evidence(replace(bundle, validation=report(bundle, runtimes=[])))
    assert evidence is not None
    assert (evidence.value, evidence.interval_95) == (None, None)
