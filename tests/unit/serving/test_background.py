"""Background tasks that fail: in a loop of their own, and in a real server whose models come loose."""

import asyncio
import re
import shutil
import signal
from dataclasses import replace

import pytest

from cpt_serving import background
from cpt_serving.background import Background


def test_a_task_that_ends_is_logged_counted_and_begun_again(monkeypatch, caplog):
    monkeypatch.setattr(background, "_FIRST_WAIT_S", 0.001)
    restarted, begun = [], []

    async def scenario():
        over = asyncio.Event()

        async def run():
            begun.append(1)
            match len(begun):
                case 1:
                    raise OSError(5, "Input/output error")
                case 2:
                    return
            over.set()
            await asyncio.Event().wait()

        tasks = Background(restarted.append)
        tasks.start("watch", run)
        await asyncio.wait_for(over.wait(), 60)
        await tasks.close()

    asyncio.run(scenario())
    assert restarted == ["watch", "watch"]
    assert "watch failed" in caplog.text
    assert "Input/output error" in caplog.text
    assert "watch ended" in caplog.text


@pytest.fixture
def models(tmp_path, shared_bundle):
    """A directory with one model."""
    shutil.copytree(shared_bundle.path, tmp_path / "models" / "colours" / "1")
    return tmp_path / "models"


def test_models_that_come_loose_are_served_on_and_watched_again(
    tmp_path, models, shared_bundle, running_server, wait_until, get
):
    with running_server(tmp_path, replace(shared_bundle, path=models), watch_s=0.05) as (_, url):
        wait_until(lambda: get(f"{url}/health/ready").json() == {"live": True, "ready": True})
        for make in (lambda: None, models.mkdir):
            models.rename(tmp_path / "away")
            make()
            wait_until(lambda: "models" in get(f"{url}/health/ready").json().get("detail", ""))
            assert "\ncpt_serve_models_readable 0.0" in get(f"{url}/metrics").text
            assert get(f"{url}/v2/models/colours/ready").status_code == 200
            if models.exists():
                models.rmdir()
            (tmp_path / "away").rename(models)
            wait_until(lambda: get(f"{url}/health/ready").json() == {"live": True, "ready": True})
        shutil.copytree(shared_bundle.path, models / "colours" / "2")
        wait_until(lambda: get(f"{url}/v2/models/colours").json()["versions"] == ["1", "2"])
        assert 'cpt_serve_background_restarts_total{task="watch-models"} 0.0' in get(f"{url}/metrics").text


def test_a_watcher_that_fails_in_a_server_begins_again(
    tmp_path, models, shared_bundle, running_server, wait_until, get
):
    program = tmp_path / "serve.py"
    program.write_text(_FAILING)
    with running_server(tmp_path, replace(shared_bundle, path=models), program=program, watch_s=0.05) as (process, url):
        (tmp_path / "fail").touch()
        wait_until(
            lambda: 'cpt_serve_background_restarts_total{task="watch-models"} 0.0' not in get(f"{url}/metrics").text
        )
        assert get(f"{url}/health/ready").status_code == 200
        (tmp_path / "fail").unlink()
        shutil.copytree(shared_bundle.path, models / "colours" / "2")
        wait_until(lambda: get(f"{url}/v2/models/colours").json()["versions"] == ["1", "2"])
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "watch-models failed" in stderr


_FAILING = """
import pathlib
from cpt_serving import load_settings, run
from cpt_serving.repository import model_repository
fail, find = pathlib.Path(__file__).with_name("fail"), model_repository.find_models
def find_or_fail(path):
    if fail.exists():
        raise MemoryError("nothing that anybody thought of")
    return find(path)
model_repository.find_models = find_or_fail
if __name__ == "__main__":
    run(load_settings(), on_listening=lambda url: print(url, flush=True))
"""


def test_what_was_refused_or_is_gone_is_no_served_model(
    tmp_path, models, shared_bundle, running_server, wait_until, get
):
    def served(url):
        return set(re.findall(r'^cpt_serve_model_info\{.*,version="(\w+)"', get(f"{url}/metrics").text, re.M))

    with running_server(tmp_path, replace(shared_bundle, path=models), watch_s=0.05) as (_, url):
        wait_until(lambda: served(url) == {"1"})
        shutil.copytree(shared_bundle.path, models / "colours" / ".2")
        (models / "colours" / ".2" / "labels.txt").write_text("others")
        (models / "colours" / ".2").rename(models / "colours" / "2")
        wait_until(lambda: get(f"{url}/v2/models/colours").json()["versions"] == ["1", "2"])
        assert served(url) == {"1"}
        shutil.copytree(shared_bundle.path, models / "colours" / "3")
        wait_until(lambda: served(url) == {"1", "3"})
        shutil.rmtree(models / "colours" / "1")
        wait_until(lambda: served(url) == {"3"})
