"""The monitors' measurements of one batch, without a Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_depth.callbacks._activity import Recorder
from lightning_depth.callbacks._activity_findings import (
    DEFAULT_TAU,
    Window,
    judge_activity,
    read_layers,
)
from lightning_depth.callbacks._activity_host import bring
from lightning_depth.callbacks._flow import read_flow
from lightning_depth.callbacks._flow_findings import judge
from lightning_depth.callbacks._gradients import GradientTable
from lightning_depth.callbacks._missing import judge_pass
from lightning_depth.callbacks._sharding import Sharding
from lightning_depth.errors import MisuseError
from lightning_depth.findings import Finding, rank_findings
from lightning_depth.layers import Granularity, order_by_execution, select_layers

__all__ = [
    "ActivationSnapshot",
    "GradientSnapshot",
    "measure_activations",
    "measure_gradients",
]


@dataclass(frozen=True)
class GradientSnapshot:
    """What one backward pass left in the parameters of a model.

    Args:
        layers: One row a layer, with its name, depth, RMS of gradient and weight, their ratio,
            and the number of non-finite elements.
        norm: Norm of the whole gradient.
        shrink_per_layer: Factor by which gradient over weight falls with every layer toward the
            input: that of the line that findings are about.
        first_to_last: Gradient over weight of the first layer over that of the last.
        findings: What these numbers say of a network at its initialisation.
        shrink_interval: Ends of the 95 % interval of ``shrink_per_layer``.
        decades: Powers of ten by which the line falls from the last of its layers to the first.
        trend_layers: The layers through which the line is fitted: blocks, where there are enough.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> [row["layer"] for row in measure_gradients(net).layers]
        ['0', '1']
    """

    layers: tuple[dict[str, Any], ...]
    norm: float
    shrink_per_layer: float
    first_to_last: float
    findings: tuple[Finding, ...]
    shrink_interval: tuple[float, float] = (math.nan, math.nan)
    decades: float = math.nan
    trend_layers: tuple[str, ...] = ()


def measure_gradients(
    model: nn.Module,
    granularity: Granularity = "block",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> GradientSnapshot:
    """Return what a backward pass left in the parameters of a model.

    Args:
        model: Any module whose parameters have gradients.
        granularity: "block" for repeated blocks, "leaf" for every module that owns weights.
        include: Glob patterns of layers to measure; all by default.
        exclude: Glob patterns of layers to leave out; none by default.

    Returns:
        The measurement and its findings.

    Raises:
        MisuseError: No parameter has a gradient.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> measure_gradients(net).findings
        ()
    """
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    layers = select_layers(model, granularity, include, exclude)
    reading = GradientTable(model, layers, parameters, Sharding(), device).read()
    if reading is None:
        raise MisuseError("No parameter has a gradient: call `backward` on a loss first.")
    flow = read_flow(reading)
    return GradientSnapshot(
        layers=tuple(
            {
                "layer": layer.layer.name,
                "depth": layer.layer.depth,
                "grad_rms": layer.grad_rms,
                "weight_rms": layer.weight_rms,
                "grad_to_weight": layer.grad_to_weight,
                "nonfinite": layer.nonfinite,
            }
            for layer in reading.layers
        ),
        norm=reading.norm,
        shrink_per_layer=flow.trend.shrink_per_layer,
        first_to_last=flow.trend.first_to_last,
        findings=tuple(rank_findings([*judge_pass(reading), *judge(flow, None, scaled=False)])),
        shrink_interval=(flow.trend.low, flow.trend.high),
        decades=flow.trend.decades,
        trend_layers=tuple(layer.layer.name for layer in flow.layers),
    )


@dataclass(frozen=True)
class ActivationSnapshot:
    """What one forward pass showed of the layers of a model.

    Args:
        layers: One row a layer, with its name, depth, RMS of its output, shares of dead, dormant
            and saturated units, effective rank and variety.
        findings: What these numbers say of a network at its initialisation.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> len(measure_activations(net, lambda: net(torch.ones(2, 4))).layers)
        2
    """

    layers: tuple[dict[str, Any], ...]
    findings: tuple[Finding, ...]


def measure_activations(
    model: nn.Module,
    run: Callable[[], object],
    granularity: Granularity = "block",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> ActivationSnapshot:
    """Return what one forward pass shows of the layers of a model.

    Args:
        model: Any module that is not compiled.
        run: Calls the module once, on a batch of the caller's choice.
        granularity: "block" for repeated blocks, "leaf" for every module that owns weights.
        include: Glob patterns of layers to measure; all by default.
        exclude: Glob patterns of layers to leave out; none by default.

    Returns:
        The measurement and its findings; units are judged on this one batch.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        >>> rows = measure_activations(net, lambda: net(torch.ones(2, 4))).layers
        >>> [row["layer"] for row in rows]
        ['0', '2']
    """
    layers = select_layers(model, granularity, include, exclude)
    recorder = Recorder(model, layers)
    recorder.attach()
    try:
        run()
    finally:
        activity = recorder.detach()
    brought, window = bring(activity), Window(min_samples=1)
    window.add(brought)
    ordered = order_by_execution(layers, activity.executed)
    seen = read_layers(ordered, brought, window, tau=DEFAULT_TAU)
    return ActivationSnapshot(
        layers=tuple(layer.row() for layer in seen),
        findings=tuple(rank_findings(judge_activity(seen))),
    )
