from pathlib import Path

import pytest

from cpt_deploy.errors import UsageError
from cpt_serving import load_settings
from cpt_serving.cores import available_cores


def test_defaults_are_safe():
    settings = load_settings(bundle="bundle")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.golden == "exact"


def test_arguments_go_before_the_environment_and_none_counts_as_not_given(monkeypatch):
    monkeypatch.setenv("CPT_SERVE_PORT", "9000")
    monkeypatch.setenv("CPT_SERVE_TOP_K", "2")
    settings = load_settings(bundle="bundle", port=9001, top_k=None)
    assert (settings.port, settings.top_k) == (9001, 2)


def test_a_misspelt_variable_is_no_setting(monkeypatch):
    monkeypatch.setenv("CPT_SERVE_API_KEY", "keys.txt")
    monkeypatch.setenv("cpt_serve_port", "1")
    with pytest.raises(UsageError, match=r"to be settings, but got CPT_SERVE_API_KEY$"):
        load_settings(bundle="b")


def test_all_problems_are_in_one_line():
    with pytest.raises(UsageError) as caught:
        load_settings(port=70000, threads=0, colour="red")
    assert "\n" not in caught.value.message
    for name in ("bundle", "port", "threads", "colour"):
        assert name in caught.value.message


def test_concurrency_follows_the_cores_that_are_left():
    cores = available_cores()
    assert load_settings(bundle="b").inferences_at_once == cores
    assert load_settings(bundle="b", threads=2 * cores).inferences_at_once == 1
    assert load_settings(bundle="b", concurrency=7).inferences_at_once == 7


def test_a_yaml_file_goes_behind_arguments_and_environment(monkeypatch, tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text("bundle: models\nport: 1\ntop_k: 2\nmax_batch: 3\nrequire_evidence: true\n")
    monkeypatch.setenv("CPT_SERVE_TOP_K", "20")
    settings = load_settings(config=file, port=100)
    assert (settings.bundle, settings.port, settings.top_k, settings.max_batch) == (Path("models"), 100, 20, 3)
    assert settings.require_evidence
    monkeypatch.setenv("CPT_SERVE_CONFIG", str(file))
    assert load_settings().max_batch == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("port: 70000\nbundle: b", "port"),
        ("bundle: b\nmax_bach: 3", "max_bach"),
        ("- bundle", "list"),
        ("", "NoneType"),
        ("bundle: [", "YAML"),
    ],
)
def test_what_is_wrong_with_a_yaml_file_is_one_line(tmp_path, content, expected):
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=expected) as caught:
        load_settings(config=file)
    assert "\n" not in caught.value.message


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.yaml.*No such file"):
        load_settings(config=tmp_path / "nowhere.yaml")
