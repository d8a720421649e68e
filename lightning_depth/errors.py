"""Error classes of the package and the few sentences in which it refuses an argument.

Every refusal has one form, so that a message read at night says what is wrong, what was given and
what is allowed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

__all__ = [
    "ConfigurationError",
    "LightningDepthError",
    "MissingExtraError",
    "MisuseError",
    "check_choice",
    "check_count",
    "check_divisible",
    "check_name",
    "check_real",
    "closest",
    "invalid",
]


class LightningDepthError(Exception):
    """Base class of every error that the package raises on purpose.

    Example:
        >>> issubclass(ConfigurationError, LightningDepthError)
        True
    """


class ConfigurationError(LightningDepthError, ValueError):
    """An argument, a recipe or a name that cannot be used as given.

    Example:
        >>> issubclass(ConfigurationError, ValueError)
        True
    """


class MisuseError(LightningDepthError, RuntimeError):
    """A call in the wrong order or at the wrong moment.

    Example:
        >>> issubclass(MisuseError, RuntimeError)
        True
    """


class MissingExtraError(LightningDepthError, ImportError):
    """An optional dependency that is not installed; the message names the extra that brings it.

    Example:
        >>> issubclass(MissingExtraError, ImportError)
        True
    """


def invalid(name: str, condition: str, value: object) -> ConfigurationError:
    """Return the error for an argument that is not what it must be.

    Args:
        name: Name of the argument as the caller wrote it.
        condition: What the argument must be, continuing the words "must be".
        value: What was given instead.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> str(invalid("width", "a whole number of at least 1", 0))
        '`width` must be a whole number of at least 1, but got 0.'
    """
    return ConfigurationError(f"`{name}` must be {condition}, but got {value!r}.")


def closest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names nearest to a misspelt one, nearest first.

    Args:
        name: The misspelt name.
        known: The names that exist.
        count: At most this many are returned.

    Returns:
        The nearest names; empty where none is similar.

    Example:
        >>> closest("resnit", ["plain", "residual", "resnet"], count=1)
        ['resnet']
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def check_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return a name if it is known, otherwise raise an error with the closest match.

    Args:
        kind: What is being named, in the singular ("block", "data set", "key").
        name: The name to look up.
        known: The names that exist.

    Returns:
        The name, unchanged.

    Raises:
        ConfigurationError: The name is not among the known ones.

    Example:
        >>> check_name("block", "residual", ["plain", "residual"])
        'residual'
    """
    names = list(known)
    if isinstance(name, str) and name in names:
        return name
    near = closest(str(name), names)
    ordered = near + sorted(set(names) - set(near))
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(
        f"Unknown {kind} {name!r}.{hint} Known: {', '.join(ordered) or 'none'}."
    )


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return a value that is one of a few words, or raise an error that lists them.

    Args:
        name: Name of the argument.
        value: What was given.
        choices: The words that are allowed.

    Returns:
        The value, unchanged.

    Raises:
        ConfigurationError: The value is not among the choices.

    Example:
        >>> check_choice("by", "params", ["params", "multiply_adds"])
        'params'
    """
    words = list(choices)
    if isinstance(value, str) and value in words:
        return value
    near = closest(str(value), words, count=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ConfigurationError(
        f"{invalid(name, 'one of ' + ', '.join(map(repr, words)), value)}{hint}"
    )


def check_count(name: str, value: object, minimum: int = 1) -> int:
    """Return a whole number that is at least a minimum, or raise.

    Args:
        name: Name of the argument.
        value: What was given; bools are refused.
        minimum: Smallest value allowed.

    Returns:
        The value as an int.

    Raises:
        ConfigurationError: The value is no whole number or too small.

    Example:
        >>> check_count("epochs", 8)
        8
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise invalid(name, f"a whole number of at least {minimum}", value)
    return int(value)


def check_real(
    name: str,
    value: object,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    *,
    exclusive: bool = False,
) -> float:
    """Return a finite number within bounds, or raise.

    Args:
        name: Name of the argument.
        value: What was given; bools and NaN are refused.
        minimum: Lower bound.
        maximum: Upper bound.
        exclusive: Whether the bounds themselves are refused.

    Returns:
        The value as a float.

    Raises:
        ConfigurationError: The value is no finite number or out of bounds.

    Example:
        >>> check_real("momentum", 0.9, 0.0, 1.0)
        0.9
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    inside = minimum < number < maximum if exclusive else minimum <= number <= maximum
    if math.isfinite(number) and inside:
        return number
    more, less = ("greater than", "less than") if exclusive else ("at least", "at most")
    bounds = [f"{more} {minimum:g}"] if minimum > -math.inf else []
    bounds += [f"{less} {maximum:g}"] if maximum < math.inf else []
    of = " of" if bounds and not exclusive else ""
    raise invalid(name, f"a finite number{of} {' and '.join(bounds)}".strip(), value)


def check_divisible(name: str, value: int, divisor_name: str, divisor: int) -> int:
    """Return a count that is divisible by another, or raise an error that says both.

    Args:
        name: Name of the count.
        value: The count.
        divisor_name: Name of the divisor.
        divisor: The divisor.

    Returns:
        The count divided by the divisor.

    Raises:
        ConfigurationError: The division leaves a remainder.

    Example:
        >>> check_divisible("in_channels", 6, "groups", 2)
        3
    """
    if value % divisor:
        raise ConfigurationError(
            f"`{name}` (={value}) must be divisible by `{divisor_name}` (={divisor})."
        )
    return value // divisor
