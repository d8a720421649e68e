"""Optimizers and schedulers by name, and what a configuration file cannot name."""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentError, ArgumentParser
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lightning_depth.errors import ConfigurationError
from lightning_depth.modules import Classifier, build_optimizer, build_scheduler
from lightning_depth.modules.factories import takes_total_steps

SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25, "momentum": 0.5}}
CYCLE = {"class_path": "torch.optim.lr_scheduler.OneCycleLR", "init_args": {"max_lr": 0.5}}
NETWORK = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}


def parse(**arguments: Any) -> Classifier:
    """Build a Classifier from what a YAML file would hold."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Classifier, "model")
    parsed = parser.parse_object({"model": {"network": NETWORK, **arguments}})
    model: Classifier = parser.instantiate(parsed).model
    return model


def make(model: Classifier) -> torch.optim.Optimizer:
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    return optimizer


def returns_an_int(parameters: Any) -> int:
    return 5


def test_yaml_names_any_optimizer_by_class_path() -> None:
    optimizer = make(parse(optimizer=SGD))
    assert isinstance(optimizer, torch.optim.SGD)
    assert (optimizer.defaults["lr"], optimizer.defaults["momentum"]) == (0.25, 0.5)


def test_yaml_names_a_scheduler_that_waits_for_the_length_of_the_run() -> None:
    model = parse(optimizer=SGD, scheduler=CYCLE)
    assert takes_total_steps(model._make_scheduler)


# jsonargparse is on its way to refusing such paths before anybody looks at types
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("argument", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "value",
    [
        *("os.system", "builtins.eval", "builtins.print", "subprocess.Popen", "subprocess.call"),
        *({"class_path": "os.system"}, {"class_path": "subprocess.Popen"}),
        *("torch.load", {"class_path": "torch.nn.Linear"}, f"{__name__}.returns_an_int"),
    ],
    ids=str,
)
def test_yaml_cannot_name_another_function(argument: str, value: Any) -> None:
    with pytest.raises(ArgumentError):
        parse(**{"optimizer": SGD, argument: value})


def test_factory_that_returns_something_else_is_named() -> None:
    sentence = "`optimizer` must be a callable that returns a torch optimizer, but it returned 5."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        Classifier(nn.Linear(2, 3), returns_an_int).configure_optimizers()  # type: ignore[arg-type]


def test_short_names_and_dotted_paths_give_the_same() -> None:
    for name in ("AdamW", "torch.optim.AdamW", "torch.optim.adamw.AdamW"):
        optimizer = build_optimizer(name, lr=0.01)(nn.Linear(2, 1).parameters())
        assert type(optimizer) is torch.optim.AdamW
        assert optimizer.defaults["lr"] == 0.01


def test_optimizers_of_timm_can_be_named() -> None:
    optimizer = build_optimizer("timm.optim.Lion", lr=0.01)(nn.Linear(2, 1).parameters())
    assert type(optimizer).__name__ == "Lion"


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (functools.partial(OneCycleLR, max_lr=0.1), True),
        (functools.partial(OneCycleLR, max_lr=0.1, total_steps=7), False),
        (functools.partial(OneCycleLR, max_lr=0.1, epochs=7, steps_per_epoch=3), False),
        (functools.partial(functools.partial(OneCycleLR, max_lr=0.1), total_steps=7), False),
        (build_scheduler("OneCycleLR", max_lr=0.1), True),
        (build_scheduler("StepLR", step_size=3), False),
        (StepLR, False),
        (lambda optimizer: StepLR(optimizer, 3), False),
        (lambda optimizer, total_steps: CosineAnnealingLR(optimizer, total_steps), True),
        (ReduceLROnPlateau, False),
    ],
)
def test_length_is_asked_for_where_it_is_missing(factory: Any, expected: bool) -> None:
    assert takes_total_steps(factory) is expected


@pytest.mark.parametrize(
    ("build", "name", "options", "sentence"),
    [
        (
            build_optimizer,
            "torch.load",
            {},
            "The optimizer 'torch.load' is no subclass of Optimizer.",
        ),
        (
            build_optimizer,
            "os.system",
            {},
            "The optimizer 'os.system' is no subclass of Optimizer.",
        ),
        (
            build_scheduler,
            "torch.optim.SGD",
            {},
            "The scheduler 'torch.optim.SGD' is no subclass of LRScheduler.",
        ),
        (
            build_optimizer,
            "nowhere.SGD",
            {},
            "The optimizer 'nowhere.SGD' cannot be imported: No module named 'nowhere'.",
        ),
        (
            build_optimizer,
            "SGD",
            {"lr": -1.0},
            "Optimizer 'SGD' refuses its arguments: Invalid learning rate: -1.0",
        ),
        (
            build_scheduler,
            "StepLR",
            {},
            "Scheduler 'StepLR' refuses its arguments: "
            "StepLR.__init__() missing 1 required positional argument: 'step_size'",
        ),
    ],
)
def test_what_is_no_factory_is_refused(
    build: Any, name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build(name, **options)


@pytest.mark.parametrize(
    ("build", "name", "options", "start"),
    [
        (build_optimizer, "SDG", {}, "Unknown optimizer 'SDG'. Did you mean 'SGD'? Known: SGD, "),
        (
            build_scheduler,
            "OneCycle",
            {},
            "Unknown scheduler 'OneCycle'. Did you mean 'OneCycleLR'?",
        ),
        (
            build_optimizer,
            "SGD",
            {"momentun": 0.9},
            "Unknown argument of the optimizer SGD: 'momentun'. Did you mean 'momentum'? Known: ",
        ),
    ],
)
def test_misspelt_name_gets_the_closest(
    build: Any, name: str, options: dict[str, Any], start: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}"):
        build(name, **options)
