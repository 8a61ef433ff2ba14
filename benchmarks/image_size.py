"""Size, start-up time and memory of a container image of the server, measured in a fresh environment.

An image adds the packages of `pip install .`, without pip itself, to its base (deploy/docker/Dockerfile); the same is
installed here into an environment of its own, and a bundle is served from there.

    python benchmarks/image_size.py runs/digits/bundle-8bit
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from measuring import ROOT, machine, machine_line, markdown_table, write_results
from server_processes import ServerCommand, running

STARTS = 5
LARGEST = 5
MEGABYTE = 1e6

_CONTENTS = """
import importlib.metadata, json
print(json.dumps([
    [package.metadata["Name"], str(package.locate_file(file))]
    for package in importlib.metadata.distributions() for file in package.files or ()
]))
"""


def main(bundle: Path, port: int) -> None:
    """Install, measure and write `results/image_size`."""
    with tempfile.TemporaryDirectory(prefix="image-size-") as folder:
        environment = Path(folder, "environment")
        install(environment)
        total = size_of(environment)
        sizes = sizes_by_package(environment)
        starts = [start(environment, bundle, port, Path(folder, "server.log")) for _ in range(STARTS)]
    content = {
        "bytes": total,
        "packages": sizes,
        "torch": "torch" in sizes,
        "ready_s": statistics.median(ready for ready, _ in starts),
        "resident_mib": statistics.median(resident for _, resident in starts),
        "machine": machine(),
    }
    write_results("image_size", content, table(content))


def install(environment: Path) -> None:
    """Install the base of cpt-deploy as the Dockerfile does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--disable-pip-version-check", ROOT], check=True)


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def sizes_by_package(environment: Path) -> dict[str, int]:
    """Return the bytes of each installed distribution, largest first."""
    python = environment / "bin" / "python"
    listed = subprocess.run([python, "-c", _CONTENTS], capture_output=True, text=True, check=True, cwd=environment)
    sizes: dict[str, int] = defaultdict(int)
    for name, file in json.loads(listed.stdout):
        sizes[name] += Path(file).stat().st_size if Path(file).is_file() else 0
    return dict(sorted(sizes.items(), key=lambda entry: -entry[1]))


def start(environment: Path, bundle: Path, port: int, log: Path) -> tuple[float, float]:
    """Return the seconds until a server is ready on one core, and its resident memory in MiB then."""
    serve = [str(environment / "bin" / "cpt"), "serve", str(bundle.resolve()), "--port", str(port)]
    command = ServerCommand("cpt-deploy", serve, port, "/health/ready", {"CPT_SERVE_DRAIN_S": "0", "PYTHONPATH": ""})
    with log.open("ab") as file, running(command, core=0, log=file) as server:
        return server.start_s, server.resident_mib()


def table(content: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    largest = list(content["packages"].items())[:LARGEST]
    rows = [
        ["environment with cpt-deploy, added to the base image", f"{content['bytes'] / MEGABYTE:.0f} MB"],
        *([f"of it {name}", f"{size / MEGABYTE:.0f} MB"] for name, size in largest),
        ["PyTorch in it", "yes" if content["torch"] else "no"],
        ["start to ready on one core, median of " + str(STARTS), f"{content['ready_s']:.2f} s"],
        ["resident memory then", f"{content['resident_mib']:.0f} MiB"],
    ]
    return "\n\n".join(
        [
            "What an image of the server consists of (`python benchmarks/image_size.py BUNDLE`)",
            markdown_table(["", "measured"], rows),
            machine_line(content["machine"]),
        ]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=8470)
    arguments = parser.parse_args()
    main(arguments.bundle, arguments.port)
