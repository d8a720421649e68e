"""What a layer hands on, and along which axis its features lie."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from lightning_depth.layers import feature_axis, is_channels_last, main_output, main_tensor

LAST, FIRST = -1, 1

# Every kind whose layout torch documents, with an input for which both axes have as many entries.
# The oracle is the documentation: which axis of (B, ., .) holds what the weights make.
KINDS: list[tuple[str, nn.Module, Tensor, int]] = [
    ("Linear", nn.Linear(4, 6), torch.rand(2, 6, 4), LAST),
    ("Linear of maps", nn.Linear(4, 6), torch.rand(2, 6, 5, 4), LAST),
    ("Linear with weight norm", weight_norm(nn.Linear(4, 6)), torch.rand(2, 6, 4), LAST),
    ("Embedding", nn.Embedding(6, 6), torch.zeros(2, 6, dtype=torch.long), LAST),
    ("Embedding of as many words as positions", nn.Embedding(9, 4),
     torch.zeros(2, 9, dtype=torch.long), LAST),
    ("Embedding of pixels", nn.Embedding(5, 4), torch.zeros(2, 5, 3, dtype=torch.long), LAST),
    ("Conv1d", nn.Conv1d(3, 6, 1), torch.rand(2, 3, 6), FIRST),
    ("Conv2d", nn.Conv2d(3, 6, 1), torch.rand(2, 3, 5, 6), FIRST),
    ("Conv2d with groups", nn.Conv2d(4, 6, 1, groups=2), torch.rand(2, 4, 6, 6), FIRST),
    ("Conv3d", nn.Conv3d(3, 6, 1), torch.rand(2, 3, 2, 2, 6), FIRST),
    ("ConvTranspose1d", nn.ConvTranspose1d(6, 4, 1), torch.rand(2, 6, 6), FIRST),
    ("ConvTranspose1d with groups", nn.ConvTranspose1d(6, 4, 1, groups=2),
     torch.rand(2, 6, 6), FIRST),
    ("ConvTranspose2d", nn.ConvTranspose2d(6, 4, 1), torch.rand(2, 6, 6, 6), FIRST),
    ("ConvTranspose3d", nn.ConvTranspose3d(6, 4, 1), torch.rand(2, 6, 6, 6, 6), FIRST),
    ("Bilinear", nn.Bilinear(3, 3, 6), torch.rand(2, 6, 3), LAST),
    ("RNN", nn.RNN(3, 6, batch_first=True), torch.rand(2, 6, 3), LAST),
    ("GRU", nn.GRU(3, 6, batch_first=True), torch.rand(2, 6, 3), LAST),
    ("LSTM as long as its gates", nn.LSTM(3, 6, batch_first=True), torch.rand(2, 24, 3), LAST),
    ("LSTM both ways", nn.LSTM(3, 6, batch_first=True, bidirectional=True),
     torch.rand(2, 12, 3), LAST),
    ("LSTM with a projection", nn.LSTM(3, 8, proj_size=6, batch_first=True),
     torch.rand(2, 8, 3), LAST),
    ("MultiheadAttention", nn.MultiheadAttention(6, 2, batch_first=True), torch.rand(2, 6, 6),
     LAST),
    ("MultiheadAttention as long as its projections",
     nn.MultiheadAttention(6, 2, batch_first=True), torch.rand(2, 18, 6), LAST),
    ("LayerNorm", nn.LayerNorm(6), torch.rand(2, 6, 6), LAST),
    ("RMSNorm", nn.RMSNorm(6), torch.rand(2, 6, 6), LAST),
    ("BatchNorm1d", nn.BatchNorm1d(6), torch.rand(2, 6, 6), FIRST),
    ("BatchNorm2d", nn.BatchNorm2d(6), torch.rand(2, 6, 6, 6), FIRST),
    ("BatchNorm3d", nn.BatchNorm3d(6), torch.rand(2, 6, 6, 6, 6), FIRST),
    ("SyncBatchNorm", nn.SyncBatchNorm(6).eval(), torch.rand(2, 6, 6), FIRST),
    ("GroupNorm", nn.GroupNorm(2, 6), torch.rand(2, 6, 6), FIRST),
    ("InstanceNorm1d", nn.InstanceNorm1d(6, affine=True), torch.rand(2, 6, 6), FIRST),
    ("InstanceNorm2d", nn.InstanceNorm2d(6, affine=True), torch.rand(2, 6, 6, 6), FIRST),
    ("PReLU", nn.PReLU(6), torch.rand(2, 6, 6), FIRST),
    ("TransformerEncoderLayer", nn.TransformerEncoderLayer(6, 2, 12, batch_first=True),
     torch.rand(2, 12, 6), LAST),
    ("TransformerEncoder", nn.TransformerEncoder(
        nn.TransformerEncoderLayer(6, 2, 12, batch_first=True), 2, enable_nested_tensor=False),
     torch.rand(2, 6, 6), LAST),
    ("Sequential of convolutions", nn.Sequential(nn.Conv1d(6, 8, 1), nn.ReLU(), nn.Conv1d(8, 6, 1)),
     torch.rand(2, 6, 8), FIRST),
    ("Sequential that ends with a Linear", nn.Sequential(nn.Conv1d(3, 6, 1), nn.Linear(6, 6)),
     torch.rand(2, 3, 6), LAST),
    ("Sequential that ends with a norm over channels",
     nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)), torch.rand(2, 6, 6), FIRST),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
@pytest.mark.parametrize(
    ("module", "given", "axis"), [kind[1:] for kind in KINDS], ids=[kind[0] for kind in KINDS]
)
def test_the_axis_of_the_features_where_both_fit(
    module: nn.Module, given: Tensor, axis: int
) -> None:
    if isinstance(module, nn.MultiheadAttention):
        output = module(given, given, given)
    elif isinstance(module, nn.Bilinear):
        output = module(given, given)
    elif isinstance(module, nn.SyncBatchNorm):
        output = given  # which runs on an accelerator only
    else:
        output = module(given)
    found = main_tensor(output)
    assert found is not None
    assert feature_axis(found, module) == axis
    assert is_channels_last(found, module) is (axis == LAST)


class Custom(nn.Module):
    """A block that somebody wrote: its parts say little of what becomes of their outputs."""

    def __init__(self, *parts: nn.Module, call: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return self.call(x) if self.call else x


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def last_of_maps(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class Gain(nn.Module):
    """A norm of somebody's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (Custom(nn.Conv2d(3, 12, 4), call=tokens), (2, 9, 12), LAST),
        (Custom(nn.Conv2d(3, 12, 4), nn.LayerNorm(12), call=tokens), (2, 9, 12), LAST),
        (Custom(nn.Conv2d(3, 12, 4), call=tokens), (2, 12, 12), None),
        (Custom(nn.Conv2d(3, 12, 4), call=last_of_maps), (2, 7, 7, 12), LAST),
        (Custom(nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1)), (2, 28, 8, 8), FIRST),  # as dense nets
        (Custom(nn.BatchNorm2d(20), nn.Conv2d(20, 8, 1)), (2, 28, 9, 8), None),
        (Custom(nn.Conv2d(8, 8, 7), nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)),
         (2, 8, 5, 5), FIRST),  # as ConvNeXt
        (Custom(nn.Conv2d(8, 8, 7), nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)),
         (2, 8, 8, 8), None),
        (Custom(nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)), (2, 32, 8), LAST),
        (Custom(nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)), (2, 8, 8, 8), LAST),
        (Custom(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)), (2, 8, 8), FIRST),
        (Gain(8), (2, 8, 5), FIRST),
        (Gain(8), (2, 5, 8), LAST),
        (Gain(8), (2, 8, 8), None),
        (Custom(nn.Linear(6, 8), Gain(8)), (2, 8, 8), LAST),
        (nn.ReLU(), (2, 5, 8), None),
        (nn.Linear(4, 8), (2, 8), LAST),
        (nn.Conv2d(3, 8, 1), (2, 8), LAST),
    ],
)  # fmt: skip
def test_the_axis_of_the_features_of_parts_put_together(
    module: nn.Module, shape: tuple[int, ...], axis: int | None
) -> None:
    assert feature_axis(torch.zeros(shape), module) == axis


# What is handed on


@dataclass
class Output:
    loss: Tensor
    hidden: Tensor
    rest: Any = None


Named = namedtuple("Named", ["loss", "hidden"])  # as projects write them
HIDDEN, LOSS = torch.rand(4, 8), torch.tensor(0.5)


@pytest.mark.parametrize(
    "output",
    [
        HIDDEN,
        (LOSS, HIDDEN),
        [HIDDEN, HIDDEN + 1],
        Named(LOSS, HIDDEN),
        Output(LOSS, HIDDEN),
        OrderedDict(loss=LOSS, hidden=HIDDEN),
        {"aux": {"count": torch.tensor([3, 4])}, "deep": [(None, Output(LOSS, HIDDEN))]},
        (pack_sequence([HIDDEN]), None),
    ],
)
def test_the_tensor_that_goes_on(output: Any) -> None:
    found = main_tensor(output)
    assert found is not None
    assert torch.equal(found, HIDDEN)


def test_complex_numbers_are_handed_on() -> None:
    found = main_tensor((None, torch.view_as_complex(torch.rand(4, 8, 2))))
    assert found is not None
    assert found.is_complex()


def test_a_packed_sequence_is_handed_on_as_it_is() -> None:
    packed = pack_sequence([torch.rand(3, 2), torch.rand(1, 2)])
    assert main_output((packed, (HIDDEN, HIDDEN))) is packed
    assert main_output((HIDDEN, packed)) is HIDDEN
    assert isinstance(main_output({"sequence": packed}), PackedSequence)


@pytest.mark.parametrize("output", [None, "word", (), torch.tensor([1, 2]), object(), {"n": 3}])
def test_what_holds_no_numbers_that_vary(output: Any) -> None:
    assert main_tensor(output) is None
