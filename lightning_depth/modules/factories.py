"""Optimizers and schedulers still to be made: what a recipe or a command line can name.

A factory type says what class it returns. A bare callable type would let a configuration file name
any function at all.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from lightning_depth.errors import ConfigurationError, check_name

__all__ = [
    "OptimizerFactory",
    "SchedulerFactory",
    "build_optimizer",
    "build_scheduler",
    "takes_total_steps",
]

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]
_Made = TypeVar("_Made")


def build_optimizer(name: str, **init_args: Any) -> OptimizerFactory:
    """Return a factory of an optimizer, its arguments checked at once.

    Args:
        name: Name of a class of `torch.optim`, or the dotted path of a subclass of its Optimizer.
        **init_args: Arguments of the class, without the parameters.

    Returns:
        A callable on parameters or parameter groups.

    Raises:
        ConfigurationError: The name is unknown, no optimizer, or refuses the arguments.

    Example:
        >>> make = build_optimizer("SGD", lr=0.1, momentum=0.9)
        >>> make(torch.nn.Linear(2, 1).parameters()).defaults["momentum"]
        0.9
    """
    optimizer = _find("optimizer", name, torch.optim, Optimizer)
    _check_arguments("optimizer", optimizer, init_args)
    factory = functools.partial(optimizer, **init_args)
    _try("Optimizer", name, lambda: factory([torch.zeros(1, 1, requires_grad=True)]))
    return factory


def build_scheduler(name: str, **init_args: Any) -> SchedulerFactory:
    """Return a factory of a learning-rate scheduler, its arguments checked at once.

    A scheduler that must know the length of the run, such as OneCycleLR, is told it by
    `Classifier`; `total_steps` is then not given here.

    Args:
        name: Name of a class of `torch.optim.lr_scheduler`, or the dotted path of a subclass of its
            LRScheduler.
        **init_args: Arguments of the class, without the optimizer.

    Returns:
        A callable on an optimizer.

    Raises:
        ConfigurationError: The name is unknown, no scheduler, or refuses the arguments.

    Example:
        >>> make = build_scheduler("StepLR", step_size=3)
        >>> make(torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)).get_last_lr()
        [0.1]
    """
    scheduler = _find("scheduler", name, lr_scheduler, LRScheduler)
    _check_arguments("scheduler", scheduler, init_args)
    factory = functools.partial(scheduler, **init_args)
    trial = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
    length = {"total_steps": 100} if takes_total_steps(factory) else {}
    _try("Scheduler", name, lambda: factory(trial, **length))
    return factory


def takes_total_steps(factory: Callable[..., Any]) -> bool:
    """Return whether a scheduler must still be told how many steps the run has.

    Args:
        factory: A callable on an optimizer.

    Returns:
        Whether it has an argument `total_steps` that nobody has set.

    Example:
        >>> takes_total_steps(functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1))
        True
    """
    bound = _bound_arguments(factory)
    if any(bound.get(name) is not None for name in ("total_steps", "epochs")):
        return False
    return "total_steps" in bound or "total_steps" in inspect.signature(factory).parameters


def _bound_arguments(factory: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(factory, functools.partial):
        return {**_bound_arguments(factory.func), **factory.keywords}
    return {}


def _find(kind: str, name: str, home: Any, base: type[_Made]) -> Callable[..., _Made]:
    known = {
        key: value
        for key, value in vars(home).items()
        if inspect.isclass(value) and issubclass(value, base) and not key.startswith("_")
    }
    known.pop(base.__name__)
    if not isinstance(name, str) or "." not in name:
        return known[check_name(kind, name, known)]
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"The {kind} {name!r} cannot be imported: {error}.") from error
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise ConfigurationError(f"The {kind} {name!r} is no subclass of {base.__name__}.")
    made: Callable[..., _Made] = found
    return made


def _check_arguments(kind: str, made: Callable[..., Any], init_args: dict[str, Any]) -> None:
    parameters = inspect.signature(made).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for argument in init_args:
        check_name(f"argument of the {kind} {made.__name__}:", argument, list(parameters)[1:])


def _try(kind: str, name: str, make: Callable[[], Any]) -> None:
    try:
        make()
    except Exception as error:
        raise ConfigurationError(f"{kind} {name!r} refuses its arguments: {error}") from error
