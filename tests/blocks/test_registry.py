"""Blocks by name, and the blocks of other packages."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.blocks import _registry, block_factory, list_blocks, register_block
from lightning_depth.errors import ConfigurationError
from lightning_depth.networks import build_convnet


class ForeignBlock(nn.Module):
    num_layers = 1

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_BUILDERS", dict(_registry._BUILDERS))


def refuses(sentence: str) -> pytest.RaisesExc[ConfigurationError]:
    return pytest.raises(ConfigurationError, match=f"^{re.escape(sentence)}$")


def test_the_thirteen_blocks_are_there() -> None:
    assert {
        *("plain", "residual", "bottleneck", "preactivation", "preactivation_bottleneck"),
        *("highway", "crelu", "dense", "maxout", "separable", "inverted_residual"),
        *("inception", "reversible"),
    } <= set(list_blocks())


def test_a_registered_block_builds_a_network() -> None:
    register_block("foreign")(ForeignBlock)
    network = build_convnet("foreign", depth=8, width=4, num_classes=3)
    assert network.depth == 8
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 3)


class BoastfulBlock(ForeignBlock):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, :1]


class BrokenBlock(ForeignBlock):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel")


def test_a_block_that_returns_other_channels_is_named_at_assembly() -> None:
    with refuses("Block 'BoastfulBlock' says `out_channels` (=4), but returns 1 channels."):
        build_convnet(BoastfulBlock, depth=8, width=4, num_classes=3)


def test_a_block_that_fails_is_named_at_assembly() -> None:
    with refuses("Block 'BrokenBlock' fails on an input of shape (2, 4, 8, 8): no kernel"):
        build_convnet(BrokenBlock, depth=8, width=4, num_classes=3)


def test_trying_out_a_block_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    block_factory("plain").try_out(4)
    register_block("foreign")(ForeignBlock)
    block_factory("foreign").try_out(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_taken_name_is_refused() -> None:
    with refuses("Block 'plain' is registered already, as PlainBlock."):
        register_block("plain")(ForeignBlock)


def test_entry_points_of_other_packages_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("foreign_package", f"{__name__}:ForeignBlock", "lightning_depth.blocks")
    monkeypatch.setattr(_registry, "entry_points", lambda group: [point])
    _registry._load_entry_points.cache_clear()
    try:
        assert "foreign_package" in list_blocks()
    finally:
        _registry._load_entry_points.cache_clear()
    assert block_factory("foreign_package")(3, 8).out_channels == 8


def test_a_misspelt_block_gets_the_closest() -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Unknown block 'resnit'\. Did you mean 'residual'\? Known: "
    ):
        block_factory("resnit")


def test_a_misspelt_option_gets_the_closest() -> None:
    known = "num_layers, activation, bottleneck, dims, init, norm"
    with refuses(f"Unknown plain option 'num_layer'. Did you mean 'num_layers'? Known: {known}."):
        block_factory("plain", num_layer=3)


@pytest.mark.parametrize(
    ("name", "arguments", "options", "sentence"),
    [
        ("plain", (0, 8), {}, "`in_channels` must be a whole number of at least 1, but got 0."),
        ("plain", (8, 0), {}, "`out_channels` must be a whole number of at least 1, but got 0."),
        ("plain", (8, 8, 0), {}, "`stride` must be a whole number of at least 1, but got 0."),
        (
            "plain",
            (8, 8),
            {"dims": 1},
            "`dims` must be 0 (linear layers) or 2 (images), but got 1.",
        ),
        (
            "plain",
            (8, 8, 2),
            {"dims": 0},
            "`stride` must be 1 where `dims` is 0, which has nothing to stride over, but got 2.",
        ),
        (
            "plain",
            (8, 8),
            {"num_layers": 0},
            "`num_layers` must be a whole number of at least 1, but got 0.",
        ),
        ("crelu", (8, 7), {}, "`out_channels` (=7) must be divisible by `signs` (=2)."),
        ("reversible", (8, 7), {}, "`out_channels` (=7) must be divisible by `halves` (=2)."),
        ("reversible", (7, 8), {}, "`in_channels` (=7) must be divisible by `halves` (=2)."),
        ("bottleneck", (8, 6), {}, "`out_channels` (=6) must be divisible by `expansion` (=4)."),
        ("inception", (8, 12), {}, "`out_channels` (=12) must be divisible by `shares` (=8)."),
        (
            "inception",
            (8, 16),
            {"split": (1, 1, 1, 1, 1, 1)},
            "`split` must be four widths that add up to 16, but got (1, 1, 1, 1, 1, 1).",
        ),
        (
            "dense",
            (16, 30),
            {"growth_rate": 12},
            "`out_channels` (=30) must exceed the channels that enter the dense layers (=16) by a "
            "multiple of `growth_rate` (=12).",
        ),
        (
            "dense",
            (16, 28),
            {"dims": 0, "compression": 0.5},
            "`compression` must be 1.0 where `dims` is 0: there is no transition, but got 0.5.",
        ),
        *(
            (
                "dense",
                (16, 28, stride),
                {"compression": compression},
                "`compression` must be a number greater than 0 and at most 1, but got "
                f"{compression}.",
            )
            for compression in (0, 1.5)
            for stride in (1, 2)
        ),
        (
            "residual",
            (8, 8),
            {"shortcut": "D"},
            "`shortcut` must be one of 'A', 'B', 'C', but got 'D'.",
        ),
        (
            "residual",
            (8, 4),
            {},
            "Shortcut option A only adds channels, but `out_channels` (=4) is less than "
            "`in_channels` (=8); take option B.",
        ),
        (
            "preactivation_bottleneck",
            (8, 8),
            {"stride_in": "2x2"},
            "`stride_in` must be one of '1x1', '3x3', but got '2x2'.",
        ),
        (
            "plain",
            (8, 8),
            {"init": "he"},
            "`init` must be one of 'kaiming', 'xavier', 'gaussian', 'zero_last_gamma', "
            "'depth_scaled', but got 'he'.",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    name: str, arguments: tuple[int, ...], options: dict[str, object], sentence: str
) -> None:
    with refuses(sentence):
        block_factory(name, **options)(*arguments)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"activation": "rellu"}, r"^Unknown activation 'rellu'\. Did you mean 'relu'\? Known: "),
        ({"activation": "Conv9d"}, r"^Unknown activation 'Conv9d'\."),
        ({"norm": "batchnrom"}, r"^Unknown normalisation 'batchnrom'\. Did you mean 'batchnorm'\?"),
    ],
)
def test_misspelt_parts_get_the_closest(option: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        block_factory("plain", **option)(8, 8)
