"""Nothing that this project loads can run code: no pickle, and no loader that falls back to it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cpt_deploy", "cli/cpt_cli", "serving/cpt_serving")
FILES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.hub.load"}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def keyword(call, name):
    for given in call.keywords:
        if given.arg == name and isinstance(given.value, ast.Constant):
            return given.value.value
    return None


def unsafe(tree):
    """Lines of a module that load pickles or run what they read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The errors that torch's safe loader and the start of a process raise are no loaders.
            harmless = {alias.name for alias in node.names} <= {"PicklingError", "UnpicklingError"}
            names = set() if harmless else {(node.module or "").partition(".")[0]}
        else:
            names = set()
        if names & FORBIDDEN_MODULES:
            yield node.lineno
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            if (
                name in FORBIDDEN_CALLS
                or keyword(node, "allow_pickle") is True
                or (name == "torch.load" and keyword(node, "weights_only") is not True)
            ):
                yield node.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_loads_pickles(file):
    assert list(unsafe(ast.parse(file.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch; torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(source):
    assert list(unsafe(ast.parse(source))) == [1]


def test_the_search_lets_the_rest_pass():
    imports = "import json\nfrom pickle import UnpicklingError\n"
    source = f"{imports}torch.load(f, weights_only=True)\nnp.load(f, allow_pickle=False)\nyaml.safe_load(text)\n"
    assert list(unsafe(ast.parse(source))) == []
