"""Quantized ONNX files of other tools, validated integer by integer: onnxruntime's own, and what else installs.

Each tool quantizes a small residual network with random weights on 32 random images (`quantizing_tools/`); onnxruntime
also a Transformer layer with an LSTM. Tools besides onnxruntime get an environment of their own that sees the packages
of this one; those that do not install or run are named. The columns are those of `cpt validate FILE.onnx` with random
inputs: MACs on integers, integers that differ from exact arithmetic as this project runs the file, and as other
programs on this processor do, integers that change with onnxruntime's optimizations off, and the findings.

    python benchmarks/other_tools.py [--tools torchao nncf] [--environments build/other-tools]
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import machine, machine_line, markdown_table, measures_all, write_results

from cpt_deploy.bundle.runtime.sessions import may_saturate
from cpt_deploy.errors import CptError
from cpt_deploy.workflows import validate_onnx_file

HERE = Path(__file__).parent / "quantizing_tools"
OWN = "onnxruntime"


@dataclass(frozen=True)
class Tool:
    """A tool that quantizes networks.

    Args:
        program: The program here that runs it.
        package: Its distribution.
        needed: Further distributions; everything else is in this environment.
    """

    program: str
    package: str
    needed: tuple[str, ...] = ()


TOOLS = {
    OWN: Tool("onnxruntime_files.py", "onnxruntime"),
    "torchao": Tool("torchao_file.py", "torchao"),
    "brevitas": Tool("brevitas_file.py", "brevitas", ("dependencies", "unfoldNd")),
    "nncf": Tool(
        "nncf_file.py", "nncf",
        ("jstyleson", "natsort", "openvino-telemetry", "pymoo", "tabulate", "pydot", "networkx", "pandas", "jsonschema",
         "jsonschema-specifications", "referencing", "rpds-py", "attrs", "joblib", "threadpoolctl"),
    ),
    "neural-compressor": Tool(
        "neural_compressor_file.py", "neural-compressor",
        ("schema", "prettytable", "py-cpuinfo", "psutil", "deprecated", "opencv-python-headless", "pycocotools",
         "pandas", "joblib", "threadpoolctl", "wrapt", "contextlib2", "wcwidth"),
    ),
    "quark": Tool("quark_file.py", "amd-quark", ("onnxslim", "evaluate", "zstandard", "tqdm", "pandas")),
}  # fmt: skip


def python_of(tool: Tool, environments: Path) -> Path:
    """Return the interpreter of a tool, after installing it if it is missing."""
    if tool.package == OWN:
        return Path(sys.executable)
    folder = environments / tool.package
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", tool.package, *tool.needed]
        subprocess.run(install, check=True, capture_output=True, text=True)
        places = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (places / "this_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def version_of(tool: Tool, environments: Path) -> str:
    """Return the version of a tool in its environment."""
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    python = python_of(tool, environments)
    return subprocess.check_output([python, "-c", code, tool.package], text=True).strip()


def make_files(tool: Tool, environments: Path, folder: Path) -> str | None:
    """Let a tool write its files; return the reason if that fails."""
    try:
        python = python_of(tool, environments)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [python, "-W", "ignore", str(HERE / tool.program), str(folder)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=900, env=environment, cwd=folder)
    except subprocess.TimeoutExpired:
        return "it did not end within 15 minutes"
    except subprocess.CalledProcessError as error:
        return next(iter(reversed(error.stderr.strip().splitlines())), "no reason given")
    return None


def measured(path: Path, source: Path) -> dict[str, Any]:
    """Return the figures of one file."""
    try:
        report = validate_onnx_file(path, None, source if source.exists() else None)
    except CptError as error:
        return {"file": path.stem, "refused": error.message}
    facts, inspection = report.to_dict(), report.inspection
    changed = [entry for entry in report.unoptimized if entry.mismatches]
    return {
        "file": path.stem,
        "integer_share": inspection.integer_share,
        "compared": report.served.compared,
        "differing": report.served.mismatches,
        "default_kernels": None if report.default_kernels is None else report.default_kernels.mismatches,
        "unoptimized_compared": sum(entry.values for entry in report.unoptimized),
        "unoptimized": sum(entry.mismatches for entry in changed),
        "findings": sorted({finding.rule for finding in inspection.findings}),
        "verdict": facts["verdict"],
    }


def table(content: Mapping[str, Any]) -> str:
    """Return the results as a table with the text that explains it."""
    rows = [
        [entry["file"], *([entry["refused"], "", "", "", "", ""] if "refused" in entry else _cells(entry))]
        for entry in content["files"]
    ]
    header = ["file", "MACs on integers", "integers compared", "differ", "default kernels", "optimizations off"]
    versions = ", ".join(f"{name} {version}" for name, version in content["tools"].items())
    missing = "".join(f" {name} is missing: {reason}." for name, reason in content["missing"].items())
    return (
        "Quantized files of a small network with random weights, each validated on random inputs "
        "(`python benchmarks/other_tools.py`)\n\n"
        f"{markdown_table([*header, 'findings'], rows)}\n\n{machine_line(content['machine'])} {versions}.{missing}"
    )


def _cells(entry: dict[str, Any]) -> list[str]:
    default = entry["default_kernels"]
    return [
        "unknown" if entry["integer_share"] is None else f"{entry['integer_share']:.1%}",
        f"{entry['compared']:,}",
        f"{entry['differing']:,}",
        "the same" if default is None else f"{default:,} wrong",
        f"{entry['unoptimized'] / max(1, entry['unoptimized_compared']):.2%}",
        ", ".join(f"`{name}`" for name in entry["findings"]),
    ]


def main() -> None:
    """Make and measure all files, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--environments", type=Path, default=Path("build/other-tools"), metavar="DIR")
    arguments = parser.parse_args()
    environments = arguments.environments.absolute()
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    files: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for tool in dict.fromkeys([OWN, *arguments.tools]):  # onnxruntime's program also writes the float file
            before = set(folder.glob("*.onnx"))
            print(f"quantizing with {tool}", file=sys.stderr)
            reason = make_files(TOOLS[tool], environments, folder)
            if reason is not None:
                missing[tool] = reason
                continue
            versions[tool] = version_of(TOOLS[tool], environments)
            for path in sorted(set(folder.glob("*.onnx")) - before - {folder / "float.onnx"}):
                source = folder / ("none" if path.stem.startswith(("text", "brevitas")) else "float.onnx")
                files.append(measured(path, source))
    content = {"machine": machine(), "tools": versions, "missing": missing, "files": files}
    name = "other_tools_without_vnni" if may_saturate() else "other_tools"
    write_results(name, content, table(content), whole=measures_all(parser, arguments, "tools"))


if __name__ == "__main__":
    main()
