"""Highway, concatenated ReLU, maxout, separable and inception blocks against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_depth.blocks import CReLU, Maxout, block_factory


def count(module: nn.Module, ndim: int = 1) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim >= ndim)


def test_highway_is_the_mixture_of_the_paper() -> None:
    block = block_factory("highway", dims=0)(6, 6)
    x = torch.randn(4, 6)
    transform = torch.sigmoid(x @ block.gate.weight.T + block.gate.bias)
    hidden = torch.relu(x @ block.branch.linear.weight.T + block.branch.linear.bias)
    torch.testing.assert_close(block(x), hidden * transform + x * (1 - transform))
    torch.testing.assert_close(block.carry(x), 1 - transform)


@pytest.mark.parametrize(
    ("bias", "transform"), [(-1.0, 0.268941), (-2.0, 0.119203), (-3.0, 0.047426)]
)
def test_gate_starts_as_closed_as_its_bias_says(bias: float, transform: float) -> None:
    block = block_factory("highway", dims=0, gate_bias=bias)(50, 50)
    assert block.carry(torch.zeros(1, 50)).mean().item() == pytest.approx(1 - transform, abs=1e-6)


def test_closed_gate_is_the_identity() -> None:
    block = block_factory("highway", gate_bias=-100.0)(8, 8)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_highway_of_50_units_costs_as_much_as_71_plain_ones() -> None:
    highway = block_factory("highway", dims=0)(50, 50)
    plain = block_factory("plain", dims=0)(71, 71)
    assert (count(highway), count(plain)) == (5_100, 5_112)


def test_crelu_loses_nothing() -> None:
    x = torch.randn(3, 5, 4, 4)
    y = CReLU()(x)
    assert torch.equal(y[:, :5] - y[:, 5:], x)
    assert torch.equal(y[:, :5] + y[:, 5:], x.abs())


def test_crelu_layer_has_half_the_weights() -> None:
    crelu = block_factory("crelu", num_layers=1)(64, 64)
    plain = block_factory("plain", num_layers=1)(64, 64)
    assert 2 * count(crelu, 2) == count(plain, 2)


def test_crelu_learns_a_scale_and_a_bias_where_asked() -> None:
    block = block_factory("crelu", num_layers=1, affine=True, norm=None)(4, 6).eval()
    nn.init.constant_(block.branch.affine1.weight, 2.0)
    nn.init.constant_(block.branch.affine1.bias, 1.0)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), 2 * CReLU()(block.branch.conv1(x)) + 1)


def test_maxout_with_a_zero_piece_is_relu() -> None:
    block = block_factory("maxout", dims=0)(6, 4)
    block.branch.linear1.weight.data[1::2] = 0
    x = torch.randn(5, 6)
    linear = x @ block.branch.linear1.weight[::2].T
    torch.testing.assert_close(block(x), linear.relu(), rtol=0, atol=1e-6)
    pieces = torch.stack([linear, torch.zeros_like(linear)], dim=2).flatten(1)
    assert torch.equal(Maxout(2)(pieces), linear.relu())


def test_maxout_of_a_feature_and_its_negative_is_the_absolute_value() -> None:
    x = torch.randn(5, 6, 3, 3)
    assert torch.equal(Maxout(2)(torch.stack([x, -x], dim=2).flatten(1, 2)), x.abs())


@pytest.mark.parametrize(
    ("pieces", "target"),
    [(2, torch.abs), (4, lambda x: torch.maximum(torch.maximum(-2 * x - 1, x), 3 * x - 2))],
    ids=["absolute", "convex"],
)
def test_one_maxout_unit_learns_a_convex_function(pieces: int, target: object) -> None:
    torch.manual_seed(0)
    unit = block_factory("maxout", dims=0, pieces=pieces)(1, 1)
    x = torch.linspace(-2, 2, 101)[:, None]
    optimizer = torch.optim.Adam(unit.parameters(), lr=0.05)
    for _ in range(400):
        loss = (unit(x) - target(x)).square().mean()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-3


def test_separable_block_has_the_weights_of_the_paper() -> None:
    assert count(block_factory("separable")(512, 512)) == 268_800


def test_inverted_residual_ends_linear_and_adds_where_it_can() -> None:
    block = block_factory("inverted_residual")(8, 8)
    assert isinstance(block.branch[-1], nn.BatchNorm2d)
    for parameter in block.branch.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


@pytest.mark.parametrize(("in_channels", "stride"), [(4, 1), (8, 2)])
def test_inverted_residual_without_shortcut(in_channels: int, stride: int) -> None:
    block = block_factory("inverted_residual", expansion_ratio=1)(in_channels, 8, stride)
    for parameter in block.branch.parameters():
        nn.init.zeros_(parameter)
    assert block.num_layers == 2
    assert not block(torch.randn(2, in_channels, 4, 4)).any()


def test_inception_concatenates_its_branches_in_order() -> None:
    block = block_factory("inception", split=(2, 3, 4, 5, 6, 7))(8, 19).eval()
    x = torch.randn(2, 8, 5, 5)
    widths = [branch(x).shape[1] for branch in (block.branch1, block.branch2, block.branch3)]
    assert widths == [2, 4, 6]
    assert torch.equal(block(x)[:, 2:6], block.branch2(x))


def test_inception_with_the_filters_of_the_paper() -> None:
    block = block_factory("inception", kernel_size=5)(8, 16)
    assert block.branch3.conv2.kernel_size == (5, 5)
