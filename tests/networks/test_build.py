"""Depth, width and parameter counts of what the builders assemble."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from lightning_depth.blocks import block_factory, register_block
from lightning_depth.errors import ConfigurationError
from lightning_depth.networks import build_convnet, build_mlp

CIFAR_A = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
CIFAR_B = {20: 272_474, 32: 466_906, 44: 661_338, 56: 855_770, 110: 1_730_714}
BC = {"bottleneck": True, "compression": 0.5}


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def build_empty(block: str, depth: int, width: int, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build_convnet(block, depth, width, num_classes=10, block_options=options)


@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize(("depth", "parameters"), CIFAR_A.items())
def test_plain_and_option_a_count_as_published(block: str, depth: int, parameters: int) -> None:
    network = build_empty(block, depth, 16)
    assert (count(network), network.depth) == (parameters, depth)


@pytest.mark.parametrize(("depth", "parameters"), CIFAR_B.items())
def test_option_b_counts_as_published(depth: int, parameters: int) -> None:
    assert count(build_empty("residual", depth, 16, shortcut="B")) == parameters


@pytest.mark.parametrize(
    ("depth", "growth_rate", "options", "parameters"),
    [
        (40, 12, {}, 1_019_722),
        (100, 12, {}, 6_979_642),
        (100, 24, {}, 27_249_082),
        (100, 12, BC, 769_162),
        (250, 24, BC, 15_324_406),
        (190, 40, BC, 25_624_430),
    ],
    ids=["40-12", "100-12", "100-24", "bc-100-12", "bc-250-24", "bc-190-40"],
)
def test_dense_nets_count_as_published(
    depth: int, growth_rate: int, options: dict[str, Any], parameters: int
) -> None:
    network = build_empty("dense", depth, growth_rate, **options)
    assert (count(network), network.depth) == (parameters, depth)


@pytest.mark.parametrize(
    ("block", "depth", "width", "arguments", "layers"),
    [
        ("plain", 200, 16, {}, 200),
        ("dense", 64, 16, {}, 64),
        # its authors count the three projections, which are not on the main path
        ("preactivation", 34, 48, {"stem_width": 16, "block_options": {"shortcut": "B"}}, 32),
    ],
    ids=["plain-200", "densenet-64-16", "wrn-34-3"],
)
def test_any_member_of_a_family_is_one_call(
    block: str, depth: int, width: int, arguments: dict[str, Any], layers: int
) -> None:
    with torch.device("meta"):
        network = build_convnet(block, depth, width, num_classes=10, **arguments)
    on_the_path = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert network.depth == layers == len(on_the_path)


def test_bottleneck_164_counts_as_the_reference() -> None:
    network = build_empty("bottleneck", 164, 64)
    assert (count(network), network.depth) == (1_704_154, 164)


def test_plain_and_residual_twins_exchange_weights() -> None:
    plain = build_convnet("plain", depth=8, width=4, num_classes=10)
    residual = build_convnet("residual", depth=8, width=4, num_classes=10)
    residual.load_state_dict(plain.state_dict(), strict=True)
    assert list(residual.state_dict()) == list(plain.state_dict())


def test_plain_56_runs_on_digits() -> None:
    network = build_convnet("plain", depth=56, width=8, num_classes=10, in_channels=1)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("block", "depth", "sentence"),
    [
        (
            "plain",
            21,
            "`depth` of a plain net must be 6n+2, but got 21. The nearest are 20 and 26.",
        ),
        (
            "residual",
            3,
            "`depth` of a residual net must be 6n+2, but got 3. The nearest are 8 and 14.",
        ),
        (
            "bottleneck",
            30,
            "`depth` of a bottleneck net must be 9n+2, but got 30. The nearest are 29 and 38.",
        ),
        (
            "dense",
            41,
            "`depth` of a dense net must be 3n+4, but got 41. The nearest are 40 and 43.",
        ),
        ("plain", 0, "`depth` must be a whole number of at least 1, but got 0."),
    ],
)
def test_depth_outside_the_family_names_the_nearest(block: str, depth: int, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet(block, depth=depth, width=16, num_classes=10)


def test_speech_network_counts_as_published() -> None:
    with torch.device("meta"):
        network = build_mlp("plain", 5, width=2048, in_features=429, num_classes=9304)
    assert count(network) == 36_729_944
    assert sum(p.numel() for p in network.parameters() if p.ndim == 2) == 36_710_400


@pytest.mark.parametrize("hidden_layers", [1, 2, 3, 5, 7])
def test_mlp_has_the_hidden_layers_asked_for(hidden_layers: int) -> None:
    network = build_mlp("plain", hidden_layers, width=16, in_features=64, num_classes=10)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert network.hidden_layers == hidden_layers == len(linear) - 1


def test_mlp_flattens_images() -> None:
    network = build_mlp("residual", 3, width=16, in_features=64, num_classes=10)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("shape", "described", "units"), [((1, 20, 20), "1 x 20 x 20", 400), ((63,), "63", 63)]
)
@pytest.mark.parametrize("block", ["plain", "maxout", "dense"])
def test_image_of_another_size_than_the_mlp_was_built_for(
    block: str, shape: tuple[int, ...], described: str, units: int
) -> None:
    network = build_mlp(block, 3, width=8, in_features=784, num_classes=10)
    sentence = f"This network needs 784 input units, but inputs of shape {described} have {units}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        network(torch.randn(2, *shape))


def test_compression_that_keeps_nothing_is_refused() -> None:
    sentence = "`compression` must be a number greater than 0 and at most 1, but got 0."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet("dense", 40, 12, num_classes=10, block_options={"compression": 0})


def test_hidden_layers_that_the_block_cannot_make_names_the_nearest() -> None:
    sentence = "`hidden_layers` of a residual net must be 2n+1, but got 4. The nearest are 3 and 5."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_mlp("residual", 4, 8, in_features=8, num_classes=2, block_options={"num_layers": 2})


def test_a_block_that_hides_its_channels_is_named_at_assembly() -> None:
    register_block("careless_example")(lambda i, o, s: nn.Identity())
    sentence = (
        "Block 'careless_example' must have an attribute `out_channels` that says how many "
        "channels it returns, but Identity has none."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet("careless_example", depth=8, width=4, num_classes=2)


def test_factory_made_for_mlps_is_refused_for_images() -> None:
    sentence = "Block 'plain' was made with `dims` (=0), but this network needs `dims` (=2)."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet(block_factory("plain", dims=0), depth=8, width=4, num_classes=2)


def test_options_beside_a_factory_are_refused() -> None:
    sentence = (
        "`block_options` must be left out where `block` is a factory, which has its own, "
        "but got {'norm': None}."
    )
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet(
            block_factory("plain"), 8, width=4, num_classes=2, block_options={"norm": None}
        )


@pytest.mark.parametrize("width", [0, -1, 1.5, True])
def test_width_that_is_no_count_is_refused(width: Any) -> None:
    sentence = f"`width` must be a whole number of at least 1, but got {width!r}."
    with pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$"):
        build_convnet("plain", depth=8, width=width, num_classes=2)
