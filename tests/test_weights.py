"""Which parameters are weights: by who owns them, whatever their shape."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_depth.layers import is_scale, is_weight, weight_parameters


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in weight_parameters(model)]


@pytest.mark.parametrize(
    ("module", "weights"),
    [
        (nn.Linear(1, 8), ["weight"]),
        (nn.Conv2d(4, 4, 1, groups=4), ["weight"]),
        (nn.ConvTranspose1d(2, 3, 2), ["weight"]),
        (nn.Bilinear(2, 3, 4), ["weight"]),
        (nn.Embedding(5, 3), ["weight"]),
        (nn.LSTM(2, 3), ["weight_ih_l0", "weight_hh_l0"]),
        (nn.GRUCell(2, 3), ["weight_ih", "weight_hh"]),
        (nn.MultiheadAttention(4, 2, add_bias_kv=True), ["in_proj_weight", "out_proj.weight"]),
        (nn.LayerNorm([3, 4, 4]), []),
        (nn.BatchNorm2d(3), []),
        (nn.InstanceNorm1d(3, affine=True), []),
        (nn.RMSNorm([2, 3]), []),
        (nn.PReLU(4), []),
        (nn.LazyLinear(3), ["weight"]),
        (parametrizations.weight_norm(nn.Linear(3, 4)), ["parametrizations.weight.original1"]),
        (parametrizations.spectral_norm(nn.Linear(3, 4)), ["parametrizations.weight.original"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_the_owner_tells(module: nn.Module, weights: list[str]) -> None:
    assert _names(module) == weights


class GlobalResponseNorm(nn.Module):
    """Somebody's own normalization."""


class LayerScale2d(nn.Module):
    """Somebody's own scale."""


@pytest.mark.parametrize(
    ("owner", "name", "shape"),
    [
        (nn.Module(), "gamma", (16,)),
        (nn.Module(), "layer_scale", (1, 1, 16)),
        (nn.Module(), "layer_scale_1", (16, 1, 1)),
        (nn.Module(), "gamma", (16, 8, 8)),
        (nn.Module(), "gate", ()),
        (nn.Module(), "skip", (1, 1)),
        (LayerScale2d(), "weight", (16, 2)),
        (GlobalResponseNorm(), "weight", (16, 8, 8)),
    ],
)
def test_scales_are_no_weights_whatever_their_shape(
    owner: nn.Module, name: str, shape: Sequence[int]
) -> None:
    assert not is_weight(owner, name, shape)
    assert is_scale(owner, name, shape)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("cls_token", (1, 1, 8)), ("pos_embed", (1, 9, 8)), ("position_embedding", (9, 8)),
     ("relative_position_bias_table", (9, 4)), ("rel_bias", (4, 9, 9))],
)  # fmt: skip
def test_what_is_added_is_neither_weight_nor_scale(name: str, shape: Sequence[int]) -> None:
    assert not is_weight(nn.Module(), name, shape)
    assert not is_scale(nn.Module(), name, shape)


@pytest.mark.parametrize("name", ["kernel", "w1", "w_gate", "expert_weights", "lora_b"])
def test_a_matrix_of_a_module_of_ones_own_is_a_weight(name: str) -> None:
    assert is_weight(nn.Module(), name, (4, 1, 6))


def test_shared_weights_come_once_and_wrappers_are_left_out_of_names() -> None:
    net = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
    net[1].weight = net[0].weight
    assert _names(net) == ["0.weight"]
    assert _names(torch.compile(nn.Sequential(nn.Linear(2, 2)))) == ["0.weight"]  # type: ignore[arg-type]
