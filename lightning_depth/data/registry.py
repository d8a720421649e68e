"""Data sets by short name, as recipes and the command line name them."""

from __future__ import annotations

import inspect
from typing import Any

from lightning_depth.data._memory import InMemoryDataModule
from lightning_depth.data.digits import Digits
from lightning_depth.data.mnist import MNIST
from lightning_depth.data.spoken_digits import SpokenDigits
from lightning_depth.errors import check_name

__all__ = ["build_data", "list_datasets"]

_DATASETS: dict[str, type[InMemoryDataModule]] = {
    "digits": Digits,
    "mnist": MNIST,
    "spoken_digits": SpokenDigits,
}


def list_datasets() -> list[str]:
    """Return the short names of the data sets, sorted.

    Returns:
        The names.

    Example:
        >>> "digits" in list_datasets()
        True
    """
    return sorted(_DATASETS)


def build_data(name: str, **options: Any) -> InMemoryDataModule:
    """Make a data module by its short name.

    Args:
        name: One of `list_datasets()`.
        **options: Arguments of the data module.

    Returns:
        The data module; nothing is read before its `setup`.

    Raises:
        ConfigurationError: The name or an option is unknown, or an option is out of bounds.

    Example:
        >>> build_data("digits", batch_size=32).input_shape
        (1, 8, 8)
    """
    dataset = _DATASETS[check_name("data set", name, _DATASETS)]
    known = list(inspect.signature(dataset).parameters)
    for option in options:
        check_name(f"option of data set {name!r}:", option, known)
    return dataset(**options)
