"""Which label a module's own loss leaves out: void pixels, padding.

What is measured of labels must leave out the same ones. Most projects hand the number to a loss
object, as many to a function inside a step, so the source of the module's class is read as well.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from types import FunctionType
from typing import Any

from torch import nn
from torchmetrics import Metric

__all__ = ["NO_LABEL", "find_ignore_index"]

NO_LABEL = -100
"""What torch's losses leave out unless they are told otherwise."""

LOSSES = ("loss", "entropy", "nll")  # parts of the names of functions that are losses
LIBRARIES = ("torch", "lightning", "pytorch_lightning")


def find_ignore_index(module: nn.Module) -> int | None:
    """Return the label that a module leaves out beside -100, None where none is to be seen.

    Its own attribute or hyperparameter ``ignore_index`` says it first, then its loss objects, the
    losses that the source of its class calls, and its metrics. Where those of one kind disagree
    it is not known.

    Args:
        module: The user's module.

    Example:
        >>> find_ignore_index(nn.ModuleDict({"loss": nn.CrossEntropyLoss(ignore_index=255)}))
        255
    """
    parts = list(_parts(module))
    losses = [part for part in parts if not isinstance(part, Metric)]
    metrics = [part for part in parts if isinstance(part, Metric)]
    loss_values = set(map(_value_of, losses)) - {None}
    for found in (_own(module), loss_values - {NO_LABEL}, _in_source(module)):
        if found:
            return found.pop() if len(found) == 1 else None
    if loss_values:  # a loss that counts every label: a metric without the background says less
        return None
    values = set(map(_value_of, metrics)) - {None, NO_LABEL}
    return values.pop() if len(values) == 1 else None


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _value_of(part: Any) -> int | None:
    if isinstance(part, partial):
        return _number(part.keywords.get("ignore_index"))
    return _number(getattr(part, "__dict__", {}).get("ignore_index"))


def _own(module: nn.Module) -> set[int]:
    hparams = getattr(module, "hparams", {})
    asked = hparams.get("ignore_index") if isinstance(hparams, Mapping) else None
    value = _value_of(module)
    number = value if value is not None else _number(asked)
    return set() if number in (None, NO_LABEL) else {number}


def _parts(module: nn.Module) -> Iterator[Any]:
    """The modules below, and what else hangs on the module itself."""
    yield from list(module.modules())[1:]
    for value in vars(module).values():
        items = list(value.values()) if isinstance(value, dict) else value
        yield from items if isinstance(items, (list, tuple)) else [items]


def _in_source(module: nn.Module) -> set[int]:
    """What the losses that the module's own methods call are told to leave out."""
    found = {
        _evaluate(keyword.value, module, method)
        for _, method in inspect.getmembers(type(module), inspect.isfunction)
        if (method.__module__ or "").partition(".")[0] not in LIBRARIES  # None within `exec`
        for call in _calls_in(method)
        if any(word in ast.unparse(call.func).lower() for word in LOSSES)
        for keyword in call.keywords
        if keyword.arg == "ignore_index"
    }
    return {number for number in found if number not in (None, NO_LABEL)}


@lru_cache(maxsize=1024)
def _calls_in(method: FunctionType) -> tuple[ast.Call, ...]:
    """The calls in the source of a method, which is read once."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):  # defined at a prompt, or compiled
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _evaluate(node: ast.expr, module: nn.Module, method: FunctionType) -> int | None:
    """A number as it is written, as an attribute of the module or as a global name."""
    if isinstance(node, ast.Attribute):
        return _number(getattr(_owner(node.value, module), node.attr, None))
    if isinstance(node, ast.Name):
        return _number(method.__globals__.get(node.id))
    try:
        return _number(ast.literal_eval(node))
    except ValueError:
        return None


def _owner(node: ast.expr, module: nn.Module) -> Any:
    if isinstance(node, ast.Attribute):
        return getattr(_owner(node.value, module), node.attr, None)
    return module if isinstance(node, ast.Name) and node.id == "self" else None
