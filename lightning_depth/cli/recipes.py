"""``lightning-depth recipes``: list the recipes, copy one to edit."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_depth.cli._show import make_console
from lightning_depth.errors import ConfigurationError, check_name
from lightning_depth.study import Study, list_recipes

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """List the recipes or copy one.

    Args:
        arguments: The parsed command line.

    Returns:
        0.
    """
    console, recipes = make_console(), list_recipes()
    if arguments.name is None:
        width = max(map(len, recipes))
        for name in recipes:
            console.print(f"{name:<{width}}  {Study.from_yaml(name).question}", markup=False)
        console.print(
            "\n`lightning-depth study NAME` runs one, `lightning-depth recipes NAME` copies it."
        )
        return 0
    source = recipes[check_name("recipe", arguments.name, recipes)]
    path = Path(arguments.output or f"{arguments.name}.yaml")
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise ConfigurationError(
            f"The file {str(path)!r} is there already; choose another with `--output`."
        ) from error
    except OSError as error:
        raise ConfigurationError(
            f"The file {str(path)!r} cannot be written: {error.strerror}."
        ) from error
    console.print(
        f"{path}: edit it, then `lightning-depth study {path}`.", markup=False, soft_wrap=True
    )
    return 0
