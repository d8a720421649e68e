"""Widths against the published speech table, and against trying every width."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.budget import match_width, measure_cost
from lightning_depth.errors import ConfigurationError

Rounding = Literal["floor", "nearest", "ceil"]
ROUNDINGS: tuple[Rounding, ...] = ("floor", "nearest", "ceil")


def mlp(
    hidden_layers: int, width: int, in_features: int = 429, out_features: int = 9304
) -> nn.Module:
    sizes = [in_features, *[width] * hidden_layers, out_features]
    layers = [nn.Linear(fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)]
    return nn.Sequential(*layers)


class CountingBuilder:
    def __init__(self, build: Callable[[int], nn.Module]) -> None:
        self.build = build
        self.widths: list[int] = []

    def __call__(self, width: int) -> nn.Module:
        network = self.build(width)
        assert all(parameter.is_meta for parameter in network.parameters())
        self.widths.append(width)
        return network


# Seide, Li and Yu (Interspeech 2011): deep nets of 2048 units and their shallow equals
@pytest.mark.parametrize(
    ("hidden_layers", "count_bias", "rounding", "target", "width", "cost"),
    [
        (5, False, "nearest", 36_710_400, 3772, 36_712_876),
        (7, False, "nearest", 45_099_008, 4634, 45_102_722),
        (5, False, "ceil", 36_710_400, 3772, 36_712_876),
        (7, False, "ceil", 45_099_008, 4634, 45_102_722),
        (5, True, "floor", 36_729_944, 3772, 36_725_952),
        (7, True, "floor", 45_122_648, 4634, 45_116_660),
        (5, True, "nearest", 36_729_944, 3772, 36_725_952),
        (7, True, "nearest", 45_122_648, 4635, 45_126_394),
        (5, False, "floor", 36_710_400, 3771, 36_703_143),
        (7, False, "floor", 45_099_008, 4633, 45_092_989),
    ],
)
def test_speech_table(
    hidden_layers: int, count_bias: bool, rounding: Rounding, target: int, width: int, cost: int
) -> None:
    with torch.device("meta"):
        deep = mlp(hidden_layers, 2048)
    build = CountingBuilder(lambda width: mlp(1, width))
    match = match_width(build, deep, rounding=rounding, count_bias=count_bias)
    assert (match.width, match.cost, match.target) == (width, cost, target)
    assert match.relative_error == pytest.approx(cost / target - 1, abs=1e-15)
    assert len(build.widths) <= 8


def test_highway_pair_of_equal_budget() -> None:
    # a highway layer of 50 units, 5,100 parameters, against a plain one of 71, 5,112
    match = match_width(lambda width: nn.Linear(width, width), 2 * (50 * 50 + 50))
    assert (match.width, match.cost) == (71, 5112)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


class Stepped(nn.Module):
    """A cost that grows in steps, with plateaus between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width // 5 + 1, width // 3 + 1))

    def forward(self, x: Tensor) -> Tensor:
        return x


def only_multiples_of_six(width: int) -> nn.Module:
    if width % 6:
        raise ValueError("six groups")
    return mlp(2, width, 10, 4)


def up_to_ninety(width: int) -> nn.Module:
    if width > 90:
        raise ValueError("too wide")
    return mlp(2, width, 10, 4)


def powers_of_two(width: int) -> nn.Module:
    if width & (width - 1):
        raise ValueError("no power of two")
    return mlp(1, width, 10, 4)


BUILDERS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda width: nn.Linear(7, width),
    "quadratic": lambda width: mlp(3, width, 10, 4),
    "cubic": lambda width: nn.Bilinear(width, width, width),
    "steps": Stepped,
    "six": only_multiples_of_six,
    "ninety": up_to_ninety,
    "powers": powers_of_two,
}


def all_costs(build: Callable[[int], nn.Module], multiple_of: int) -> Iterator[tuple[int, int]]:
    with torch.device("meta"):
        for width in range(multiple_of, 140, multiple_of):
            try:
                yield width, count(build(width))
            except ValueError:
                continue


@pytest.mark.parametrize("multiple_of", [1, 4])
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())
def test_search_is_exact_on_the_integers(
    build: Callable[[int], nn.Module], rounding: Rounding, multiple_of: int
) -> None:
    costs = dict(all_costs(build, multiple_of))
    lowest, highest = min(costs.values()), max(costs.values())
    targets = range(lowest + 1, highest, max((highest - lowest) // 23, 1))
    for target in [*targets, *list(costs.values())[1:-1]]:
        below = max(width for width, cost in costs.items() if cost <= target)
        above = min(width for width, cost in costs.items() if cost >= target)
        nearest = min(abs(cost - target) for cost in costs.values())
        match = match_width(build, target, rounding=rounding, multiple_of=multiple_of)
        if rounding == "nearest":
            assert abs(match.cost - target) == nearest
        else:
            assert match.width == {"floor": below, "ceil": above}[rounding]
        assert match.cost == costs[match.width]


def conv(width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride=2), nn.ReLU(), nn.Flatten()),
        nn.Linear(width * 9, 10),
    )


@pytest.mark.parametrize("by", ["multiply_adds", "activation_bytes"])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_other_costs_are_matched_exactly_too(
    by: Literal["multiply_adds", "activation_bytes"], rounding: Rounding
) -> None:
    costs = {width: getattr(measure_cost(conv(width), (1, 8, 8)), by) for width in range(1, 40)}
    target = (costs[22] + 2 * costs[23]) // 3
    build = CountingBuilder(conv)
    match = match_width(build, target, by=by, input_shape=(1, 8, 8), rounding=rounding)
    below = max(width for width, cost in costs.items() if cost <= target)
    near = min(costs, key=lambda width: (abs(costs[width] - target), width))
    above = min(width for width, cost in costs.items() if cost >= target)
    assert match.width == {"floor": below, "nearest": near, "ceil": above}[rounding]
    assert match.cost == costs[match.width]
    assert len(build.widths) <= 8


def test_norm_parameters_count_without_biases() -> None:
    with torch.device("meta"):
        target = conv(9)
    weights = sum(p.numel() for p in target.parameters() if p.ndim > 1)
    match = match_width(conv, target, count_bias=False)
    assert (match.width, match.cost) == (9, weights + 2 * 9)


def test_builder_that_computes_with_tensors_is_built_on_the_processor() -> None:
    def build(width: int) -> nn.Module:
        return mlp(1, int(torch.tensor(width).item()), 10, 4)

    assert match_width(build, mlp(1, 33, 10, 4)).width == 33


def test_search_draws_no_random_numbers() -> None:
    state = torch.get_rng_state()
    match_width(lambda width: mlp(1, int(torch.tensor(width).item()), 10, 4), 1000)
    assert torch.equal(state, torch.get_rng_state())


def refuses(sentence: str, build: Callable[[int], nn.Module], target: Any, **options: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        match_width(build, target, **options)


def test_target_below_every_width_is_said() -> None:
    refuses(
        "No width reaches the target of 5 parameters: the narrowest that can be built, 6, has 136.",
        only_multiples_of_six,
        5,
    )
    assert match_width(only_multiples_of_six, 5, rounding="ceil").width == 6


def test_target_above_every_width_is_said() -> None:
    refuses(
        "No width reaches the target of 10,000 parameters: "
        "the widest that was built, 90, has 9,544.",
        up_to_ninety,
        10_000,
    )


def test_cost_that_does_not_depend_on_the_width_is_said() -> None:
    refuses(
        "No width reaches the target of 100 parameters: "
        "the widest that was built, 16777216, has 16.",
        lambda width: nn.Linear(3, 4),
        100,
    )


def never(width: int) -> nn.Module:
    raise ValueError("never")


def test_builder_that_always_raises_is_said_with_its_reason() -> None:
    refuses(
        "No width up to 1024 can be built: ValueError: never",
        never,
        100,
    )


def test_cost_that_falls_with_the_width_is_said() -> None:
    refuses(
        "`build` must not make a network cheaper as its width grows, "
        "but width 8 has 108 parameters and width 9 has 107.",
        lambda width: nn.Linear(1, 116 - width if width > 1 else 1, bias=False),
        115,
    )


@pytest.mark.parametrize("target", [0, -3, float("nan"), float("inf"), True, "many", None])
def test_target_that_is_no_number_is_refused(target: object) -> None:
    refuses(
        f"`target` must be a number greater than 0 or a network, but got {target!r}.",
        conv,
        target,
    )


def test_shape_is_needed_for_multiply_adds() -> None:
    sentence = "`input_shape` is needed to match by 'multiply_adds'."
    refuses(sentence, conv, 1000, by="multiply_adds")


def test_biases_can_be_left_out_of_parameters_only() -> None:
    sentence = "`count_bias=False` needs by='params', but got by='multiply_adds'."
    options = {"by": "multiply_adds", "count_bias": False, "input_shape": (1, 8, 8)}
    refuses(sentence, conv, 1000, **options)


def test_misspelt_word_is_named() -> None:
    refuses(
        "`by` must be one of 'params', 'multiply_adds', 'activation_bytes', but got 'param'. "
        "Did you mean 'params'?",
        conv,
        1000,
        by="param",
    )


def test_shape_that_does_not_fit_is_not_taken_for_an_impossible_width() -> None:
    start = "The network Sequential cannot be measured with `input_shape` (3, 8, 8): "
    with pytest.raises(ConfigurationError, match=f"^{re.escape(start)}.+"):
        match_width(conv, 1000, by="multiply_adds", input_shape=(3, 8, 8))
