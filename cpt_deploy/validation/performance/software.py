"""Versions of the software of a measurement."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("cpt-deploy", "onnxruntime", "onnx", "numpy", "torch")


def software_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python, the operating system and the installed ones of the packages."""
    versions = {"python": platform.python_version(), "system": platform.platform()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
