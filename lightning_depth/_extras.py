"""The one door through which optional packages come in: one function a package, called when needed.

Nothing here is imported at module level, so a composer who imports a callback does not pay for a
plot library.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from lightning_depth.errors import MissingExtraError

__all__ = [
    "available",
    "jinja2",
    "jsonargparse",
    "librosa",
    "pandas",
    "pyplot",
    "rich",
    "scipy_stats",
    "sklearn",
    "torchvision",
    "wandb",
]


def available(package: str) -> bool:
    """Return whether a package could be imported, without importing it.

    Args:
        package: Top-level name of the package.

    Returns:
        Whether it is installed.

    Example:
        >>> available("torch")
        True
    """
    return importlib.util.find_spec(package) is not None


def _require(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        if available(package):
            raise  # installed but broken: its own message says more than ours would
        raise MissingExtraError(
            f"This needs {package}, which is not installed. "
            f"Install it with `pip install lightning-depth[{extra}]`."
        ) from error


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, or raise an error that names the extra ``plot``."""
    return _require("matplotlib.pyplot", "plot")


def matplotlib() -> Any:
    """Return ``matplotlib`` for its settings and color maps, which come in without a backend."""
    return _require("matplotlib", "plot")


def matplotlib_figure() -> Any:
    """Return ``matplotlib.figure``: its figures need no backend and leave pyplot alone."""
    return _require("matplotlib.figure", "plot")


def matplotlib_text() -> Any:
    """Return ``matplotlib.textpath``, which tells how wide a text is without drawing it."""
    return _require("matplotlib.textpath", "plot")


def pandas() -> Any:
    """Return ``pandas``, or raise an error that names the extra ``study``."""
    return _require("pandas", "study")


def sklearn(submodule: str) -> Any:
    """Return a submodule of scikit-learn, or raise an error that names the extra ``study``."""
    return _require(f"sklearn.{submodule}", "study")


def torchvision(submodule: str) -> Any:
    """Return a submodule of torchvision, which timm brings along; slow to import, so late."""
    return _require(f"torchvision.{submodule}", "all")


def librosa() -> Any:
    """Return ``librosa``, or raise an error that names the extra ``audio``."""
    return _require("librosa", "audio")


def scipy_stats() -> Any:
    """Return ``scipy.stats``, or raise an error that names the extra ``study``."""
    return _require("scipy.stats", "study")


def jinja2() -> Any:
    """Return ``jinja2``, or raise an error that names the extra ``study``."""
    return _require("jinja2", "study")


def jsonargparse() -> Any:
    """Return ``jsonargparse``, or raise an error that names the extra ``study``."""
    return _require("jsonargparse", "study")


def rich(submodule: str) -> Any:
    """Return a submodule of rich, or raise an error that names the extra ``study``."""
    return _require(f"rich.{submodule}", "study")


def wandb() -> Any:
    """Return ``wandb``; it is a required dependency, but slow to import and so brought in late."""
    return _require("wandb", "all")
