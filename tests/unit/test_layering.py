"""The arrows between the packages point one way, and what must be light loads nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "torchvision", "onnx", "matplotlib")
SERVING = ("fastapi", "starlette", "uvicorn", "onnxruntime")


def loaded_after(*steps: str) -> list[set[str]]:
    """Return the top-level modules that a fresh interpreter has loaded after each of some steps."""
    report = "import json, sys; sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = "\n".join(f"{step}\n{report}; sys.stderr.write('\\n')" for step in steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return [set(json.loads(line)) for line in done.stderr.splitlines() if line.startswith('["')]


def test_the_import_rules_of_the_project_are_kept():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


LIGHT = (
    "cpt_deploy",
    "cpt_deploy.errors",
    "cpt_deploy.registry",
    "cpt_deploy.precision",
    "cpt_deploy.recipe",
    "cpt_deploy.bundle",
    "cpt_deploy.report",
    "cpt_deploy.readable",
    "cpt_deploy.tasks",
    "cpt_deploy.tasks.image_classification",
    "cpt_deploy.tasks.text_generation",
    "cpt_deploy.workflows",
    "cpt_cli.main",
    "cpt_serving.app",
)


def test_torch_free_packages_load_no_torch():
    after = loaded_after(*(f"import {module}" for module in LIGHT))
    heavy = {module: loaded & set(HEAVY) for module, loaded in zip(LIGHT, after, strict=True)}
    assert not {module: loaded for module, loaded in heavy.items() if loaded}


def test_help_and_usage_errors_load_neither_torch_nor_a_runtime_nor_a_server():
    lines = (["--help"], ["--version"], ["train", "--help"], ["serve", "--help"], ["nonsense"])
    after = loaded_after(*(f"from cpt_cli.main import main; main({words!r})" for words in lines))
    heavy = {" ".join(words): loaded & {*HEAVY, *SERVING} for words, loaded in zip(lines, after, strict=True)}
    assert not {line: loaded for line, loaded in heavy.items() if loaded}


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], {"rich", "pydantic", "numpy", "yaml"}),
        (["train", "--help"], {"rich", "numpy"}),
        (["schedules"], {"numpy", "onnxruntime", "torch", "yaml"}),
        (["recipes"], {"numpy", "onnxruntime", "torch"}),
        (["models", "tiny"], {"torchvision", "matplotlib", "fastapi", "sklearn", "tensorboard", "onnxscript", "sympy"}),
        (["info"], {"torchvision", "matplotlib", "fastapi", "sklearn", "onnx", "onnxscript", "sympy"}),
        (["predict", "no-bundle", "image.png"], {*HEAVY, "fastapi", "uvicorn"}),
        (["validate", "no-bundle"], {*HEAVY, "fastapi", "uvicorn"} - {"onnx"}),
        (["serve", "no-bundle"], set(HEAVY)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_only_what_it_uses(words, absent):
    assert loaded_after(f"from cpt_cli.main import main; main({words!r})")[0].isdisjoint(absent)


def test_export_imports_the_exporter_of_torch_only_for_float_parts():
    loaded = loaded_after("import cpt_deploy.workflows.export, cpt_deploy.export, cpt_deploy.quantization")[0]
    assert loaded.isdisjoint({"onnxscript", "sympy", "torchvision", "matplotlib", "tensorboard", "fastapi", "triton"})


def test_training_on_the_cpu_imports_neither_the_compiler_of_torch_nor_torchvision(tmp_path):
    words = ["train", "digits-quickstart", "train.epochs=1", "--quiet", "--out", str(tmp_path / "run")]
    code = f"from cpt_cli.main import main; assert main({words!r}) == 0"
    assert loaded_after(code)[0].isdisjoint({"sympy", "torchvision", "triton", "sklearn", "scipy", "fastapi"})


def test_preparing_a_residual_network_imports_no_compiler():
    code = (
        "import torch; from cpt_deploy import QuantizationConfig, prepare; "
        "from cpt_deploy.models.cifar_resnet import CifarResNet; "
        "prepare(CifarResNet([1, 1], [8, 16], 10), torch.zeros(2, 3, 32, 32), QuantizationConfig())"
    )
    assert loaded_after(code)[0].isdisjoint({"sympy", "onnxscript"})  # torch's compiler imports sympy


def test_without_torch_a_command_that_needs_it_says_what_to_install():
    lines = (["train"], ["export", "run"], ["models"])
    code = f"import sys; sys.modules['torch'] = None; from cpt_cli.main import main; sys.exit([*map(main, {lines})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    said = ["error: torch is not installed", "hint: pip install '.[train]' in the clone of cpt-deploy"]
    assert done.stderr.splitlines() == [*said * len(lines), "[3, 3, 3]"]
