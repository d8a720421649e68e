"""What a result depends on besides its recipe: versions of packages and the kind of machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import lightning_depth

__all__ = ["installed_versions", "machine"]

_PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "numpy", "scikit-learn")


def installed_versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of what the numbers come from.

    Returns:
        Versions by name, for what is installed.

    Example:
        >>> installed_versions()["torch"] == version("torch")
        True
    """
    found = {"lightning-depth": lightning_depth.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return what kind of machine this is, without its name.

    Returns:
        Platform, processor and number of processors.

    Example:
        >>> sorted(machine())
        ['cpu_count', 'platform', 'processor']
    """
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
    }
