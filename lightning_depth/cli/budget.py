"""``lightning-depth budget``: what a network costs, or what width matches a budget."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from lightning_depth import _extras
from lightning_depth.budget import Cost, match_width, measure_cost
from lightning_depth.cli._models import Architecture, find_model
from lightning_depth.cli._show import make_console

__all__ = ["run"]

EASY_WIDTH = 960
"""A width that every block can have, being divisible by most small numbers."""


def run(arguments: argparse.Namespace) -> int:
    """Print a cost or find a width.

    Args:
        arguments: The parsed command line.

    Returns:
        0.
    """
    console, shape = make_console(), arguments.input
    build = find_model(arguments.model, shape, arguments.classes)
    if arguments.like is None and arguments.target is None:
        console.print(_costs({arguments.model: _cost(build, shape)}))
        return 0
    costs, target = {}, arguments.target
    with torch.device("meta"):
        build(EASY_WIDTH)  # what no width would mend is told before the search
    if arguments.like is not None:
        like = find_model(arguments.like, shape, arguments.classes)
        costs[arguments.like] = _cost(like, shape)
        with torch.device("meta"):
            target = like()
    found = match_width(
        build,
        target,
        by=arguments.by,
        input_shape=shape,
        rounding=arguments.rounding,
        count_bias=not arguments.no_bias,
        multiple_of=arguments.multiple_of,
    )
    costs[f"{arguments.model}, width {found.width}"] = _cost(build, shape, found.width)
    console.print(
        f"width {found.width}: {found.cost:,} {arguments.by} against {found.target:,.0f} wanted "
        f"({found.relative_error:+.4%})"
    )
    console.print(_costs(costs))
    return 0


def _cost(build: Architecture, shape: tuple[int, ...], width: int | None = None) -> Cost:
    with torch.device("meta"):
        model = build(width)
    return measure_cost(model, shape)


def _costs(costs: dict[str, Cost]) -> Any:
    table = _extras.rich("table").Table(box=_extras.rich("box").SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for name in ("parameters", "multiply-adds", "activations (bytes)"):
        table.add_column(name, justify="right")
    text = _extras.rich("text").Text
    for name, cost in costs.items():
        numbers = (cost.params, cost.multiply_adds, cost.activation_bytes)
        table.add_row(text(name), *(f"{number:,}" for number in numbers))
    table.caption = "for one sample: multiply-adds of a forward pass, activations kept for backward"
    return table
