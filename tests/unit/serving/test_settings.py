from pathlib import Path

import pytest

from cpt_deploy.errors import UsageError
from cpt_serving import ServeSettings, load_settings
from cpt_serving.settings import available_cores


def test_defaults_are_safe():
    settings = load_settings(bundle="bundle")
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 1)
    assert settings.golden == "exact"


def test_arguments_go_before_the_environment_and_none_counts_as_not_given(monkeypatch):
    monkeypatch.setenv("CPT_SERVE_PORT", "9000")
    monkeypatch.setenv("CPT_SERVE_TOP_K", "2")
    settings = load_settings(bundle="bundle", port=9001, top_k=None)
    assert (settings.port, settings.top_k) == (9001, 2)


def test_all_problems_are_in_one_line():
    with pytest.raises(UsageError) as caught:
        load_settings(port=70000, workers=0, colour="red")
    assert "\n" not in caught.value.message
    for name in ("bundle", "port", "workers", "colour"):
        assert name in caught.value.message


def test_a_worker_reads_the_same_settings_from_its_environment(monkeypatch, tmp_path):
    settings = load_settings(
        bundle=tmp_path, port=1, threads=2, golden="labels", drain_s=0.25, docs=False, log_level="error"
    )
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_paths_of_workers_do_not_depend_on_where_they_start():
    assert Path(ServeSettings(bundle=Path("bundle")).to_environment()["CPT_SERVE_BUNDLE"]).is_absolute()


def test_concurrency_follows_the_cores_that_are_left():
    cores = available_cores()
    assert load_settings(bundle="b").inferences_at_once == cores
    assert load_settings(bundle="b", workers=2, threads=cores).inferences_at_once == 1
    assert load_settings(bundle="b", concurrency=7).inferences_at_once == 7
