"""``lightning-depth inspect``: one batch through a new network, layer by layer."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from lightning_depth import _extras
from lightning_depth.budget import measure_cost
from lightning_depth.callbacks import (
    GradientSnapshot,
    measure_activations,
    measure_gradients,
)
from lightning_depth.cli._models import find_model
from lightning_depth.cli._show import make_console
from lightning_depth.errors import ConfigurationError
from lightning_depth.findings import render_verdict
from lightning_depth.layers import Layer, layer_parameters, order_by_execution, select_layers

__all__ = ["run"]

_HEALTHY = "Nothing was found at initialisation."
_COLUMNS = (
    "parameters",
    "multiply-adds",
    "output RMS",
    "dead units",
    "effective rank",
    "gradient RMS",
    "gradient / weight",
)


def run(arguments: argparse.Namespace) -> int:
    """Print cost and signal of every layer, and what is found.

    Args:
        arguments: The parsed command line.

    Returns:
        0.
    """
    torch.manual_seed(arguments.seed)
    model = find_model(arguments.model, arguments.input, arguments.classes)()
    batch = torch.randn(arguments.batch_size, *arguments.input)
    signal = measure_activations(model, lambda: _train(model, batch), arguments.granularity)
    gradients = measure_gradients(model, arguments.granularity)
    cost = measure_cost(model, arguments.input)
    ran = [row["layer"] for row in signal.layers]
    layers = order_by_execution(select_layers(model, arguments.granularity), ran)
    costs = _costs(model, batch, layers)
    console = make_console()
    console.print(
        f"{cost.params:,} parameters; for one sample {cost.multiply_adds:,} multiply-adds and "
        f"{cost.activation_bytes:,} bytes of activations kept for backward"
    )
    console.print(_table(costs, signal.layers, gradients))
    console.print(f"Gradient norm {gradients.norm:.3g}.{_trend(gradients)}", markup=False)
    found = [*signal.findings, *gradients.findings]
    console.print(render_verdict(found, healthy=_HEALTHY), markup=False)
    return 0


def _train(model: nn.Module, batch: Tensor) -> None:
    """Send a batch forward and, with random labels, backward."""
    try:
        logits = model(batch)
    except Exception as error:  # a model of anyone's: whatever it raises is told
        shape = ",".join(map(str, batch.shape[1:]))
        raise ConfigurationError(
            f"MODEL does not take `--input` {shape}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigurationError(
            f"MODEL must return a tensor of shape (batch, classes), but returned {kind}."
        )
    loss = cross_entropy(logits, torch.randint(logits.shape[1], (len(batch),)))
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _costs(model: nn.Module, batch: Tensor, layers: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    """Return parameters, and multiply-adds for one sample, of every layer."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(batch)
    flops = counter.get_flop_counts()
    parameters = layer_parameters(layers)
    root = type(model).__name__
    return {
        layer.name: (
            sum(parameter.numel() for _, parameter in parameters.get(layer.name, ())),
            sum(flops.get(f"{root}.{layer.name}", {}).values()) // (2 * len(batch)),
        )
        for layer in layers
    }


def _table(
    costs: Mapping[str, tuple[int, int]],
    signal: Iterable[Mapping[str, Any]],
    gradients: GradientSnapshot,
) -> Any:
    table = _extras.rich("table").Table(box=_extras.rich("box").SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    table.caption = "gradient and weight: RMS over weights of two dimensions or more"
    flows = {row["layer"]: row for row in gradients.layers}
    signals = {row["layer"]: row for row in signal}
    for name, counts in costs.items():
        row, flow = signals.get(name, {}), flows.get(name, {})
        table.add_row(
            _extras.rich("text").Text(name),
            *(f"{count:,}" for count in counts),
            _number(row.get("rms", math.nan)),
            _number(row.get("dead", math.nan), ".0%"),
            _number(row.get("effective_rank", math.nan)),
            _number(flow.get("grad_rms", math.nan)),
            _number(flow.get("grad_to_weight", math.nan)),
        )
    return table


def _trend(gradients: GradientSnapshot) -> str:
    """The line through the last column of the table, which is what findings are about."""
    decades, each = gradients.decades, gradients.shrink_per_layer
    if not (math.isfinite(decades) and math.isfinite(each) and each > 0):
        return ""
    verb, (low, high) = "falls", gradients.shrink_interval
    if decades < 0:
        verb, decades, each, low, high = "grows", -decades, 1 / each, 1 / high, 1 / low
    layers = gradients.trend_layers
    interval = f" (95 % interval {low:.3g} to {high:.3g})" if math.isfinite(low + high) else ""
    return (
        f" Gradient over weight {verb} {10**decades:.3g}-fold over the {len(layers)} layers from "
        f"{layers[-1]} back to {layers[0]}, {each:.3g}-fold with every layer{interval}."
    )


def _number(value: float, form: str = ".3g") -> str:
    return format(value, form) if math.isfinite(value) else "-"
