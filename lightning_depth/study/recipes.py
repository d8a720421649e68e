"""Finding the recipes: files, and those that ship with the package, by name."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from lightning_depth.errors import ConfigurationError, check_name, closest

__all__ = ["find_recipe", "list_recipes"]

_SUFFIXES = (".yaml", ".yml")


def _folder() -> Path:
    """Return where the shipped recipes are: in the wheel, or beside the package in a checkout."""
    with as_file(files("lightning_depth")) as package:
        installed = package / "recipes"
        return installed if installed.is_dir() else package.parent / "recipes"


def list_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package.

    Returns:
        Their files by name, sorted.

    Example:
        >>> "degradation" in list_recipes()
        True
    """
    return {path.stem: path for path in sorted(_folder().glob("*.yaml"))}


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        recipe: A file, or the name of a recipe that ships with the package; a file of that name
            comes first.

    Returns:
        The file.

    Raises:
        ConfigurationError: There is neither such a file nor such a recipe.

    Example:
        >>> find_recipe("degradation").name
        'degradation.yaml'
    """
    path, shipped = Path(recipe), list_recipes()
    if path.is_file() or (path.is_dir() and str(recipe) not in shipped):
        return path  # a directory is refused where it is read
    if path.suffix in _SUFFIXES or "/" in str(recipe):
        return _existing(path)
    return shipped[check_name("recipe", str(recipe), shipped)]


def _existing(path: Path) -> Path:
    if path.exists():
        return path
    others = [str(other) for other in path.parent.glob("*") if other.suffix in _SUFFIXES]
    near = closest(str(path), others, count=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(f"There is no recipe file {str(path)!r}.{hint}")
