"""Which width brings a network to a given cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from lightning_depth.budget._search import Bracket, WidthSearch
from lightning_depth.budget.cost import measure_cost
from lightning_depth.errors import ConfigurationError, check_choice, check_count, invalid

__all__ = ["Match", "match_width"]

Currency = Literal["params", "multiply_adds", "activation_bytes"]
Rounding = Literal["floor", "nearest", "ceil"]
_WORDS = {
    "params": "parameters",
    "multiply_adds": "multiply-adds",
    "activation_bytes": "bytes of activations",
}


@dataclass(frozen=True)
class Match:
    """The width that was found, and how near it comes.

    Args:
        width: The width.
        cost: What the network of that width costs, counted as the target was.
        target: What it should cost.
        relative_error: By what fraction the cost is above (+) or below (-) the target.

    Example:
        >>> Match(width=8, cost=99, target=100, relative_error=-0.01).width
        8
    """

    width: int
    cost: int
    target: float
    relative_error: float


def match_width(
    build: Callable[[int], nn.Module],
    target: float | nn.Module,
    by: Currency = "params",
    input_shape: Sequence[int] | None = None,
    rounding: Rounding = "nearest",
    count_bias: bool = True,
    multiple_of: int = 1,
) -> Match:
    """Find the width at which a network costs as much as another, exactly on the whole numbers.

    The fair opponent of a deep network is a wide one of the same budget (Seide, Li and Yu,
    Interspeech 2011). A handful of networks is built on the meta device, without weights; a width
    for which `build` raises is skipped. The cost must not fall as the width grows.

    Args:
        build: Makes the network of a width.
        target: The cost to match: a number, or a network that is counted the same way.
        by: What is matched: `params`, `multiply_adds` or `activation_bytes`.
        input_shape: Shape of one sample without the batch; needed unless `by` is `params`.
        rounding: `floor` takes the largest width that does not exceed the target, `ceil` the
            smallest that is not below it, `nearest` the one closest to it (of two, the smaller).
        count_bias: False leaves out the biases of linear and convolution layers on both sides;
            parameters of normalisation layers always count.
        multiple_of: Only multiples of it are considered.

    Returns:
        The width with its cost, the target and the relative error.

    Raises:
        ConfigurationError: An argument is wrong, no width can be built, no width reaches the
            target, or the cost falls as the width grows.

    Example:
        >>> deep = nn.Sequential(nn.Linear(64, 50), nn.Linear(50, 50), nn.Linear(50, 10))
        >>> match_width(lambda w: nn.Sequential(nn.Linear(64, w), nn.Linear(w, 10)), deep).width
        84
    """
    check_choice("by", by, _WORDS)
    check_choice("rounding", rounding, ("floor", "nearest", "ceil"))
    check_count("multiple_of", multiple_of)
    if by != "params" and input_shape is None:
        raise ConfigurationError(f"`input_shape` is needed to match by {by!r}.")
    if by != "params" and not count_bias:
        raise ConfigurationError(f"`count_bias=False` needs by='params', but got by={by!r}.")

    def count(network: nn.Module) -> int:
        if by == "params":
            return _count_params(network, count_bias)
        assert input_shape is not None
        cost: int = getattr(measure_cost(network, input_shape), by)
        return cost

    goal = _check_target(target, count)
    builder = _Builder(build)
    search = WidthSearch(lambda width: builder.measure(width, count), multiple_of)
    bracket = search.bracket(goal, strict=rounding == "ceil")
    _check_growth(search.known(), _WORDS[by])
    width, cost = _choose(search, bracket, goal, rounding, _WORDS[by], builder.reason)
    return Match(width, cost, goal, cost / goal - 1.0)


class _Builder:
    """Builds networks without weights and remembers why the last one could not be built."""

    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        self._build = build
        self.reason = ""

    def measure(self, width: int, count: Callable[[nn.Module], int]) -> int | None:
        network = self._try(width, "meta")
        if network is None:  # some constructors compute with tensors, which meta cannot
            network = self._try(width, "cpu")
        return None if network is None else count(network)

    def _try(self, width: int, device: str) -> nn.Module | None:
        try:
            with torch.random.fork_rng(devices=[]), torch.device(device):
                return self._build(width)
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
            return None


def _count_params(network: nn.Module, count_bias: bool) -> int:
    total = sum(parameter.numel() for parameter in network.parameters())
    if count_bias:
        return total
    layers = (module for module in network.modules() if isinstance(module, (nn.Linear, _ConvNd)))
    biases = {id(layer.bias): layer.bias for layer in layers if layer.bias is not None}
    return total - sum(bias.numel() for bias in biases.values())


def _check_target(target: float | nn.Module, count: Callable[[nn.Module], int]) -> float:
    if isinstance(target, nn.Module):
        return count(target)
    number = isinstance(target, Real) and not isinstance(target, bool)
    if not number or not 0 < target < float("inf"):
        raise invalid("target", "a number greater than 0 or a network", target)
    return target


def _check_growth(known: list[tuple[int, int]], unit: str) -> None:
    for (narrow, less), (wide, more) in pairwise(known):
        if more < less:
            raise ConfigurationError(
                f"`build` must not make a network cheaper as its width grows, but width {narrow} "
                f"has {less:,} {unit} and width {wide} has {more:,}."
            )


def _choose(
    search: WidthSearch, bracket: Bracket, goal: float, rounding: Rounding, unit: str, reason: str
) -> tuple[int, int]:
    costs = dict(search.known())
    below, above = bracket.below, bracket.above
    if not costs:
        raise ConfigurationError(f"No width up to {max(search.costs)} can be built: {reason}")
    if above is None and costs[max(costs)] != goal:
        raise ConfigurationError(
            f"No width reaches the target of {goal:,} {unit}: "
            f"the widest that was built, {max(costs)}, has {costs[max(costs)]:,}."
        )
    if below is None and rounding != "ceil":
        raise ConfigurationError(
            f"No width reaches the target of {goal:,} {unit}: "
            f"the narrowest that can be built, {min(costs)}, has {costs[min(costs)]:,}."
        )
    candidates = {"floor": [below], "ceil": [above], "nearest": [below, above]}[rounding]
    widths = [width for width in candidates if width is not None]
    width = min(widths, key=lambda width: (abs(costs[width] - goal), width))
    return width, costs[width]
