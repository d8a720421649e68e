"""Plain, residual and preactivation blocks against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_depth.blocks import PaddedShortcut, block_factory
from lightning_depth.blocks._init import scale_branches


def count(module: nn.Module, ndim: int = 1) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim >= ndim)


def zeroed(name: str, **options: object) -> nn.Module:
    block = block_factory(name, **options)(8, 8)
    for parameter in block.branch.parameters():
        nn.init.zeros_(parameter)
    return block


def test_residual_block_is_what_the_paper_says() -> None:
    block = block_factory("residual", shortcut="B")(4, 8, 2).eval()
    x = torch.randn(2, 4, 6, 6)
    y = F.conv2d(x, block.branch.conv1.weight, stride=2, padding=1)
    y = F.relu(y / (1 + 1e-5) ** 0.5)  # batch normalisation at its start: mean 0, variance 1
    y = F.conv2d(y, block.branch.conv2.weight, padding=1) / (1 + 1e-5) ** 0.5
    shortcut = F.conv2d(x, block.shortcut.conv.weight, stride=2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(block(x), F.relu(y + shortcut))


@pytest.mark.parametrize("name", ["preactivation", "preactivation_bottleneck"])
def test_zero_branch_makes_preactivation_the_identity(name: str) -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(zeroed(name)(x), x)


@pytest.mark.parametrize("name", ["residual", "bottleneck"])
def test_zero_branch_makes_postactivation_relu(name: str) -> None:
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(zeroed(name)(x), x.relu())


def test_zero_branch_silences_a_plain_block() -> None:
    assert not zeroed("plain")(torch.randn(2, 8, 4, 4)).any()


def test_zero_last_gamma_starts_as_the_identity_and_learns() -> None:
    block = block_factory("residual", init="zero_last_gamma")(8, 8)
    x = torch.randn(2, 8, 4, 4)
    output = block(x)
    output.square().sum().backward()
    assert torch.equal(output, x.relu())
    assert block.branch.norm2.weight.grad.any()


RESIDUAL = [
    *("residual", "bottleneck", "preactivation", "preactivation_bottleneck"),
    *("inverted_residual", "reversible"),
]


@pytest.mark.parametrize("norm", ["batchnorm", None], ids=str)
@pytest.mark.parametrize("name", RESIDUAL)
def test_zero_last_gamma_leaves_the_shortcut_and_a_way_to_learn(name: str, norm: str) -> None:
    block = block_factory(name, init="zero_last_gamma", norm=norm)(8, 8)
    x = torch.randn(4, 8, 4, 4)
    output = block(x)
    assert torch.equal(output, x.relu() if name in ("residual", "bottleneck") else x)
    (output - torch.randn_like(x)).square().sum().backward()
    for branch in block.residual_branches:
        gradients = [p.grad for p in block.get_submodule(branch).parameters()]
        assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("init", ["zero_last_gamma", "depth_scaled"])
@pytest.mark.parametrize(
    "name",
    ["plain", "highway", "crelu", "dense", "maxout", "separable", "inverted_residual", "inception"],
)
def test_blocks_without_a_residual_branch_start_as_ever(name: str, init: str) -> None:
    options = {"growth_rate": 8} if name == "dense" else {}
    states = []
    for choice in ("kaiming", init):
        torch.manual_seed(0)
        network = nn.Sequential(*(block_factory(name, init=choice, **options)(8, 16) for _ in "12"))
        scale_branches(network)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_depth_scaled_divides_by_the_root_of_the_number_of_blocks() -> None:
    torch.manual_seed(0)
    scaled = nn.Sequential(*(block_factory("residual", init="depth_scaled")(8, 8) for _ in "1234"))
    before = [block.branch.conv2.weight.clone() for block in scaled]
    first = scaled[0].branch.conv1.weight.clone()
    scale_branches(scaled)
    assert all(
        torch.equal(block.branch.conv2.weight, weight / 2)
        for block, weight in zip(scaled, before, strict=True)
    )
    assert torch.equal(scaled[0].branch.conv1.weight, first)


@pytest.mark.parametrize("name", RESIDUAL)
def test_depth_scaled_touches_the_last_weights_of_branches_alone(name: str) -> None:
    options = {"shortcut": "B"} if name != "inverted_residual" else {}
    channels = 8 if name == "inverted_residual" else 16
    make = block_factory(name, init="depth_scaled", **options)
    scaled = nn.Sequential(*(make(8, channels) for _ in "1234"))
    before = {key: value.clone() for key, value in scaled.state_dict().items()}
    scale_branches(scaled)
    changed = [key for key, value in scaled.state_dict().items() if not value.equal(before[key])]
    branches = scaled[0].residual_branches
    expected = [
        f"{number}.{branch}.conv{scaled[0].num_layers // len(branches)}.weight"
        for number in range(4)
        for branch in branches
    ]
    assert changed == expected
    assert all(torch.equal(scaled.state_dict()[key], before[key] / 2) for key in changed)


def test_bottleneck_arithmetic() -> None:
    bottleneck = block_factory("bottleneck")(256, 256)
    plain = block_factory("plain")(256, 256)
    assert (count(plain, 2), count(bottleneck, 2)) == (1_179_648, 69_632)


@pytest.mark.parametrize(("bottleneck", "twin"), [(False, "residual"), (True, "bottleneck")])
@pytest.mark.parametrize("dims", [2, 0])
def test_plain_twin_has_the_same_parameters(bottleneck: bool, twin: str, dims: int) -> None:
    plain = block_factory("plain", dims=dims, bottleneck=bottleneck)(8, 8)
    residual = block_factory(twin, dims=dims)(8, 8)
    residual.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize(
    ("option", "in_channels", "extra"), [("A", 4, 0), ("B", 4, 1), ("B", 8, 0)]
)
def test_only_options_b_and_c_project(option: str, in_channels: int, extra: int) -> None:
    block = block_factory("residual", shortcut=option)(in_channels, 8)
    assert sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 2 + extra


def test_option_c_projects_where_nothing_changes() -> None:
    block = block_factory("residual", shortcut="C")(8, 8)
    assert block.shortcut.conv.weight.shape == (8, 8, 1, 1)


@pytest.mark.parametrize("size", [8, 7], ids=["even", "odd"])
def test_padded_shortcut_subsamples_and_pads(size: int) -> None:
    x = torch.randn(2, 4, size, size)
    y = PaddedShortcut(4, 9, stride=2)(x)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_padded_shortcut_of_units() -> None:
    x = torch.randn(2, 4)
    assert torch.equal(PaddedShortcut(4, 8, dims=0)(x), F.pad(x, [2, 2]))


def test_identity_path_of_preactivation_is_untouched_by_option_a() -> None:
    block = zeroed("preactivation")
    assert isinstance(block.shortcut, nn.Identity)
    wider = block_factory("preactivation")(4, 8, 2)
    nn.init.zeros_(wider.branch.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(wider(x), PaddedShortcut(4, 8, 2)(x))


def test_projection_of_preactivation_reads_what_the_branch_reads() -> None:
    block = block_factory("preactivation", shortcut="B")(4, 8).eval()
    nn.init.zeros_(block.branch.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    expected = F.conv2d(F.relu(x / (1 + 1e-5) ** 0.5), block.shortcut.conv.weight)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("stride_in", "first"), [("1x1", (2, 2)), ("3x3", (1, 1))])
def test_stride_of_a_preactivation_bottleneck(stride_in: str, first: tuple[int, int]) -> None:
    block = block_factory("preactivation_bottleneck", stride_in=stride_in)(16, 64, 2)
    assert block.branch.conv1.stride == first


@pytest.mark.parametrize("name", ["residual", "bottleneck", "preactivation", "inverted_residual"])
def test_stochastic_depth_skips_whole_samples(name: str) -> None:
    torch.manual_seed(0)
    block = block_factory(name, drop_path=0.5)(8, 8).train()
    skipped = {"preactivation": lambda x: x, "inverted_residual": lambda x: x}.get(name, F.relu)
    x = torch.randn(64, 8, 4, 4)
    same = (block(x) == skipped(x)).flatten(1).all(1)
    assert 10 < same.sum() < 54
    assert not (block.eval()(x) == skipped(x)).flatten(1).all(1).any()


def test_stochastic_depth_that_is_no_probability_is_refused() -> None:
    sentence = "^`drop_path` must be a finite number of at least 0 and at most 1, but got 2[.]0[.]$"
    with pytest.raises(ValueError, match=sentence):
        block_factory("residual", drop_path=2.0)(8, 8)
