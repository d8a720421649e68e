"""Samples shared out between training and validation, each class in proportion."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_depth import _extras
from lightning_depth.errors import ConfigurationError, check_count, invalid

__all__ = ["check_seed", "stratified_split"]

_MAX_SEED = 2**32 - 1  # of NumPy's legacy generator, which scikit-learn draws from

Indices = NDArray[np.int64]


def check_seed(seed: object) -> int:
    """Return a seed that scikit-learn can draw from, or raise.

    Args:
        seed: What was given.

    Returns:
        The seed.

    Raises:
        ConfigurationError: The seed is no whole number, or negative, or has more than 32 bits.
    """
    number = check_count("seed", seed, minimum=0)
    if number > _MAX_SEED:
        raise invalid("seed", f"at most {_MAX_SEED:,}", number)
    return number


def stratified_split(labels: Tensor, val_fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Draw which samples are trained on and which are kept for validation.

    Args:
        labels: Classes, shape ``(N,)``; each occurs at least twice.
        val_fraction: Share that is kept for validation.
        seed: Seed of the draw.

    Returns:
        Indices of the two parts.

    Raises:
        ConfigurationError: One of the parts is too small to hold every class.
    """
    num_samples, num_classes = len(labels), int(labels.bincount().count_nonzero())
    num_val = math.ceil(val_fraction * num_samples)
    if min(num_val, num_samples - num_val) < num_classes:
        raise ConfigurationError(
            f"`val_fraction` must leave at least {num_classes} of the {num_samples:,} samples to "
            f"train on and as many to validate on, one of each class, but got {val_fraction!r}."
        )
    train, val = _extras.sklearn("model_selection").train_test_split(
        np.arange(num_samples), test_size=num_val, random_state=seed, stratify=labels.numpy()
    )
    return train, val
