"""Compiles the kernels of quantized training when the project is built or installed; without a compiler it does not."""

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("cpt_deploy") / "quantization" / "kernels"


class CompiledKernels(BuildHookInterface):
    """Puts shared objects beside the kernels' sources; they are optional, so a failure is a warning."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before a wheel, editable or not, is put together."""
        if self.target_name != "wheel":
            return
        compiler = _load(Path(self.root) / KERNELS / "compile.py")
        for level, why in compiler.compile_kernels().items():
            if why:
                self.app.display_warning(f"kernels for {level} are left out: {why}")
        if version != "editable" and any(Path(compiler.OBJECTS).glob("*.so")):
            build_data["artifacts"].append(f"{KERNELS.as_posix()}/compiled/*.so")
            build_data["pure_python"] = False
            if sys.platform == "darwin":
                build_data["infer_tag"] = True  # its platform tags hold the system's version
            else:
                tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
                build_data["tag"] = f"py3-none-{tag}"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("compile_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
