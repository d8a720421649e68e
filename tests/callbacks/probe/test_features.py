"""Rows out of maps, tokens and sequences; projections; what is the output of a layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_depth.callbacks._probe.features import (
    Projection,
    Rows,
    pool_rows,
)
from lightning_depth.callbacks._probe.outputs import find_taps
from lightning_depth.errors import ConfigurationError
from lightning_depth.layers import is_channels_last, select_layers

ALL = Rows(torch.arange(4), None)


def test_maps_are_reduced_by_their_mean() -> None:
    x = torch.randn(4, 3, 5, 6)
    rows, how = pool_rows(x, ALL, "mean", channels_last=False)
    assert how == "mean"
    torch.testing.assert_close(rows, x.mean((2, 3)))


def test_tokens_are_reduced_by_mean_or_class_token() -> None:
    x = torch.randn(4, 7, 16)
    torch.testing.assert_close(pool_rows(x, ALL, "mean", channels_last=True)[0], x.mean(1))
    rows, how = pool_rows(x, ALL, "class_token", channels_last=True)
    assert torch.equal(rows, x[:, 0])
    assert how == "class token"


def test_only_the_wanted_samples_are_taken() -> None:
    x = torch.randn(4, 3, 2, 2)
    rows, how = pool_rows(x, Rows(torch.tensor([2, 0]), None), "flatten", channels_last=False)
    assert how == "flatten"
    assert torch.equal(rows, x[[2, 0]].flatten(1))


@pytest.mark.parametrize("wanted", [[7], [0, 3, 4, 5, 8]], ids=["few", "many"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float", "bfloat16"])
def test_few_and_many_samples_are_reduced_alike(wanted: list[int], dtype: torch.dtype) -> None:
    x = torch.randn(9, 3, 4, 5).to(dtype)
    rows, _ = pool_rows(x, Rows(torch.tensor(wanted), None), "mean", channels_last=False)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, x[wanted].float().mean((2, 3)))


def test_positions_follow_the_tokens_of_class_and_distillation() -> None:
    x = torch.randn(2, 8, 5)
    samples, columns = torch.tensor([0, 1, 1]), torch.tensor([0, 3, 7])
    rows = Rows(samples, (columns[:, None] + 0.5) / 8, (8,))
    for extra in (0, 1, 2):
        tokens = torch.cat([torch.zeros(2, extra, 5), x], 1)
        found, how = pool_rows(tokens, rows, "mean", channels_last=True)
        assert torch.equal(found, x[samples, columns]), extra
        assert how == "position"


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sequences_without_padding_are_reduced_by_the_mean_of_their_own_tokens() -> None:
    parts = [torch.randn(3, 5), torch.randn(6, 5)]
    nested = torch.nested.nested_tensor(parts)
    rows, how = pool_rows(nested, Rows(torch.arange(2), None), "mean", channels_last=True)
    torch.testing.assert_close(rows, torch.stack([part.mean(0) for part in parts]))
    assert how == "mean"


@pytest.mark.parametrize("wrong", [lambda x: x.sum(), lambda x: x[:1], lambda x: x.shape])
def test_a_callable_that_loses_the_samples_is_refused(wrong: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ConfigurationError, match=r"^`pool` must return one row a sample, \(B, D\)"):
        pool_rows(torch.zeros(4, 3, 2), ALL, wrong, channels_last=False)


def test_a_callable_may_return_one_number_a_sample() -> None:
    x = torch.randn(4, 3)
    rows, _ = pool_rows(x, ALL, lambda output: output.sum(1), channels_last=False)
    torch.testing.assert_close(rows, x.sum(1, keepdim=True))


def largest(output: Tensor) -> Tensor:
    return output.amax((2, 3))


def test_a_callable_reduces_as_it_likes() -> None:
    x = torch.randn(4, 3, 2, 2)
    rows, how = pool_rows(x, ALL, largest, channels_last=False)
    assert how == "largest"
    assert torch.equal(rows, x.amax((2, 3)))


def test_positions_are_found_at_any_resolution() -> None:
    x = torch.arange(64.0).reshape(1, 1, 8, 8)
    places = torch.tensor([[0.5 / 4, 3.5 / 4]])  # row 0, column 3 of a grid of 4 x 4
    rows, how = pool_rows(x, Rows(torch.tensor([0]), places, (4, 4)), "mean", channels_last=False)
    assert how == "position"
    assert rows.tolist() == [[x[0, 0, 1, 7].item()]]


def test_a_sample_gives_one_row_a_position() -> None:
    x = torch.randn(3, 5, 4, 4)
    places = torch.tensor([[0.1, 0.1], [0.9, 0.4], [0.4, 0.9]])
    wanted = Rows(torch.tensor([1, 1, 2]), places, (4, 4))
    rows, _ = pool_rows(x, wanted, "mean", channels_last=False)
    assert torch.equal(rows, torch.stack([x[1, :, 0, 0], x[1, :, 3, 1], x[2, :, 1, 3]]))


@pytest.mark.parametrize(
    ("module", "shape", "last"),
    [
        (nn.Conv2d(3, 8, 3), (2, 8, 5, 5), False),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), (2, 5, 5, 8), True),
        (nn.TransformerEncoderLayer(8, 2), (2, 5, 8), True),
        (nn.Conv1d(3, 8, 3), (2, 8, 5), False),
        (nn.GRU(3, 8), (2, 5, 8), True),
        (nn.LSTM(3, 8, bidirectional=True), (2, 8, 16), True),
        (nn.LSTM(3, 8), (2, 32, 8), True),
        (nn.Linear(8, 8), (2, 8, 8), True),
        (nn.ReLU(), (2, 5, 8), True),
        (nn.Linear(4, 8), (2, 8), False),
    ],
    ids=[
        "conv",
        "swin",
        "transformer",
        "conv1d",
        "gru",
        "as long as its state",
        "as long as its gates",
        "square",
        "bare",
        "flat",
    ],
)
def test_the_axis_of_the_features(module: nn.Module, shape: tuple[int, ...], last: bool) -> None:
    assert is_channels_last(torch.zeros(shape), module) is last


def test_projection_keeps_distances() -> None:
    x = torch.randn(50, 6000, generator=torch.Generator().manual_seed(0))
    projected = Projection(6000, 512, seed=0)(x)
    assert projected.shape == (50, 512)
    ratio = torch.pdist(projected) / torch.pdist(x)
    # 1 +- sqrt(1 / (2 * 512)) for a projection of 512 independent signs
    assert ratio.mean().item() == pytest.approx(1.0, abs=0.03)
    assert ratio.std().item() < 0.05


def test_projection_adds_every_feature_to_four_buckets() -> None:
    x = torch.eye(900)
    projected = Projection(900, 64, seed=0)(x)
    # a feature may meet the same bucket twice, with either sign
    assert set((2 * projected).unique().tolist()) <= {
        -4.0,
        -3.0,
        -2.0,
        -1.0,
        0.0,
        1.0,
        2.0,
        3.0,
        4.0,
    }
    assert ((2 * projected).abs().sum(1) % 2 == 0).all()
    assert (2 * projected).abs().sum(1).mean().item() == pytest.approx(4.0, abs=0.2)
    both = Projection(900, 64, seed=0)(x[:1] + 3 * x[5:6])
    torch.testing.assert_close(both[0], projected[0] + 3 * projected[5])


def test_projection_is_seeded_and_leaves_narrow_rows_alone() -> None:
    x = torch.randn(3, 900)
    assert torch.equal(Projection(900, 64, 1)(x), Projection(900, 64, 1)(x))
    assert not torch.equal(Projection(900, 64, 1)(x), Projection(900, 64, 2)(x))
    assert torch.equal(Projection(900, 1000, 1)(x), x)


def test_the_activation_after_a_single_module_belongs_to_it() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    taps = find_taps(select_layers(net), net)
    assert [tap.module for tap in taps] == [net[1], net[3], net[4]]
    assert not any(tap.is_shared for tap in taps)


def test_a_block_hands_on_what_it_returns() -> None:
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
    net = nn.Sequential(*(nn.TransformerEncoderLayer(4, 1) for _ in blocks))
    assert [tap.module for tap in find_taps(select_layers(net), net)] == list(net)


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.utils.parametrizations.weight_norm],
    ids=["compiled", "parametrised"],
)
def test_a_wrapped_single_module_has_its_activation_too(wrap: Callable[..., nn.Module]) -> None:
    net = nn.Sequential(wrap(nn.Linear(4, 4)), nn.ReLU(), wrap(nn.Linear(4, 4)), nn.ReLU())
    assert [tap.module for tap in find_taps(select_layers(net), net)] == [net[1], net[3]]


def test_an_activation_that_layers_share_belongs_to_each() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))
    taps = find_taps(select_layers(net), net)
    assert [tap.module for tap in taps] == [shared, shared, net[4]]
    assert [tap.is_shared for tap in taps] == [True, True, False]
