"""From a study to its trials: every arm built once, costed, matched, and everything checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from lightning_depth.budget import Cost, Match, match_width, measure_cost
from lightning_depth.study._reading import Place
from lightning_depth.study.building import (
    build_callbacks,
    build_data,
    build_network,
    build_optimizer,
    build_scheduler,
)
from lightning_depth.study.jobs import Trial
from lightning_depth.study.parts import Arm
from lightning_depth.study.spec import Study

__all__ = ["Plan", "PlannedArm", "make_plan"]

EASY_WIDTH = 960
"""A width that every block can have, being divisible by most small numbers."""


@dataclass(frozen=True)
class PlannedArm:
    """An arm whose width is known and whose cost is measured.

    Args:
        name: Name of the arm.
        network: The network with its width.
        cost: What a sample costs.
        depth: Depth of a convolutional network of ours, None for another.
        match: Which arm it was matched to, by what, and how nearly; None where it was not.

    Example:
        >>> PlannedArm("a", {"width": 8}, Cost(1, 2, 3), None, None).width
        8
    """

    name: str
    network: Mapping[str, Any]
    cost: Cost
    depth: int | None
    match: Mapping[str, Any] | None

    @property
    def width(self) -> int | None:
        """Return the width, None where the network has none by that name."""
        return _stated(self.network).get("width")

    def to_dict(self) -> dict[str, Any]:
        """Return the arm as plain containers, as ``study.json`` keeps it."""
        return {
            "cost": asdict(self.cost),
            "network": dict(self.network),
            "width": self.width,
            "depth": self.depth,
            "match": dict(self.match) if self.match else None,
        }


@dataclass(frozen=True)
class Plan:
    """What a study will run.

    Args:
        arms: The arms in the order of the recipe.
        trials: The trials, the costliest first.

    Example:
        >>> Plan((), ()).trials
        ()
    """

    arms: tuple[PlannedArm, ...]
    trials: tuple[Trial, ...]


def make_plan(study: Study) -> Plan:
    """Return what a study will run, having built every part of it once.

    Args:
        study: The study.

    Returns:
        The plan.

    Raises:
        ConfigurationError: Something cannot be built; the message names file and key.

    Example:
        >>> arm = {"network": {"block": "plain", "hidden_layers": 1, "width": 8}}
        >>> study = Study.from_dict({"name": "one", "epochs": 1, "arms": {"a": arm}})
        >>> [trial.seed for trial in make_plan(study).trials]
        [0, 1, 2]
    """
    place = Place(study.source)
    data = build_data(study.data, 0, place.at("data"))
    build = partial(_build, input_shape=data.input_shape, num_classes=data.num_classes)
    build_optimizer(study.optimizer, place.at("optimizer"))
    build_scheduler(study.scheduler, place.at("scheduler"))
    build_callbacks(study.callbacks, place.at("callbacks"))
    planned: dict[str, PlannedArm] = {}
    for arm in study.arms:
        _plan_arm(arm, study, planned, build, data.input_shape)
    arms = tuple(planned[arm.name] for arm in study.arms)
    return Plan(arms, _order(study, arms))


def _build(
    network: Mapping[str, Any], place: Place, input_shape: tuple[int, ...], num_classes: int
) -> nn.Module:
    """Build a network to look at: ours without weights, and without a trace in the generator."""
    device = torch.device("meta" if "block" in network else "cpu")
    with torch.random.fork_rng(devices=[]), device:
        return build_network(network, input_shape, num_classes, place)


def _plan_arm(
    arm: Arm,
    study: Study,
    planned: dict[str, PlannedArm],
    build: Callable[..., nn.Module],
    input_shape: tuple[int, ...],
) -> None:
    """Plan an arm and, before it, the arm whose cost it matches."""
    if arm.name in planned:
        return
    place = Place(study.source).at("arms", arm.name)
    network, match = dict(arm.network), None
    if arm.match is not None:
        target = next(other for other in study.arms if other.name == arm.match.arm)
        _plan_arm(target, study, planned, build, input_shape)
        found = _find_width(arm, build, planned[target.name], place, input_shape)
        network = _with_width(network, found.width)
        match = {
            "arm": target.name,
            "by": arm.match.by,
            "target": found.target,
            "relative_error": found.relative_error,
        }
    model = build(network, place.at("network"))
    with place.at("network").named():
        cost = measure_cost(model, input_shape)
    planned[arm.name] = PlannedArm(arm.name, network, cost, getattr(model, "depth", None), match)


def _find_width(
    arm: Arm,
    build: Callable[..., nn.Module],
    target: PlannedArm,
    place: Place,
    input_shape: tuple[int, ...],
) -> Match:
    """Return the width at which an arm costs what another does."""
    assert arm.match is not None
    inner = place.at("network")
    build(_with_width(arm.network, EASY_WIDTH), inner)  # what no width would mend
    with place.at("match").named():
        return match_width(
            lambda width: build(_with_width(arm.network, width), inner),
            build(target.network, inner),
            by=arm.match.by,
            input_shape=input_shape,
            rounding=arm.match.rounding,
            count_bias=arm.match.count_bias,
            multiple_of=arm.match.multiple_of,
        )


def _stated(network: Mapping[str, Any]) -> Mapping[str, Any]:
    stated: Mapping[str, Any] = network.get("init_args", network)
    return stated


def _with_width(network: Mapping[str, Any], width: int) -> dict[str, Any]:
    if "init_args" in network:
        return dict(network) | {"init_args": dict(network["init_args"]) | {"width": width}}
    return dict(network) | {"width": width}


def _order(study: Study, arms: tuple[PlannedArm, ...]) -> tuple[Trial, ...]:
    """Return all trials, those that take longest first, so that no worker is left with one."""
    content = study.to_dict()
    shared = {
        key: content[key]
        for key in ("data", "optimizer", "scheduler", "callbacks", "epochs", "threads")
    }
    costly = sorted(arms, key=lambda arm: -arm.cost.multiply_adds)
    return tuple(
        Trial(
            arm=arm.name,
            seed=seed,
            weight=arm.cost.multiply_adds * study.epochs,
            content={"network": dict(arm.network)} | shared,
        )
        for arm in costly
        for seed in study.seeds
    )
