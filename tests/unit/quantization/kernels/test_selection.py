"""Which kernels are used, and that nothing about compiled ones can break an import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpt_deploy.errors import UsageError
from cpt_deploy.quantization.kernels import compile as compilation
from cpt_deploy.quantization.kernels import selection as choice
from cpt_deploy.quantization.kernels.selection import active, load_native, native_levels

choose = active.__wrapped__


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the compiled kernels."""
    monkeypatch.setattr(compilation, "OBJECTS", tmp_path / "compiled")
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    return tmp_path / "compiled"


def test_the_variable_forces_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "torch")
    assert choose().kernels.name == "torch"
    assert not choose().native


def test_a_wrong_value_of_the_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "fast")
    with pytest.raises(UsageError, match="auto, native, triton, torch, but got 'fast'"):
        choose()


def test_without_objects_plain_torch_is_used(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose()
    assert found.kernels.name == "torch"
    assert "not compiled" in found.reason
    monkeypatch.setenv(choice.VARIABLE, "native")
    with pytest.raises(UsageError, match="not compiled"):
        choose()


@pytest.mark.parametrize(
    "content", [b"", b"not a shared object", b"\x7fELF" + bytes(60)], ids=["empty", "text", "truncated"]
)
def test_a_broken_object_is_not_used(elsewhere: Path, content: bytes) -> None:
    elsewhere.mkdir()
    compilation.object_path("generic").write_bytes(content)
    assert "cannot be loaded" in choose().reason


def test_objects_of_other_sources_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(native_levels(), str):
        pytest.skip("no compiled kernels")
    monkeypatch.setattr(choice, "sources_digest", lambda: "of an older version")
    assert "compiled from other sources" in choose().reason


@pytest.mark.parametrize("compiler", ["/no/such/compiler", "false"])
def test_without_a_working_compiler_there_is_a_reason_and_no_file(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    failures = compilation.compile_kernels()
    assert all(failures.values())
    assert not list(elsewhere.iterdir())


def test_what_is_compiled_here_can_be_used(elsewhere: Path) -> None:
    failures = compilation.compile_kernels()
    if failures["generic"]:
        pytest.skip(f"no C compiler: {failures['generic']}")
    assert not isinstance(load_native(), str)


def test_importing_the_package_with_broken_objects_works(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from cpt_deploy.quantization.kernels import compile as c; "
        f"c.OBJECTS = Path({str(tmp_path)!r}); import cpt_deploy.quantization as q; "
        "from cpt_deploy.quantization.kernels import active; print(active().kernels.name)"
    )
    (tmp_path / "generic.so").write_bytes(b"broken")
    environment = {key: value for key, value in os.environ.items() if key != choice.VARIABLE}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "torch"
