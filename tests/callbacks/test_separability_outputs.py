"""Outputs of every form are read, or the layer is named with the reason."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

from tests.callbacks.test_separability import rows_of
from tests.callbacks.test_separability_projects import CLASSES, Runs, measured, points
from tests.metrics import reference

Pair = namedtuple("Pair", ["hidden", "extra"])  # as projects write them


@dataclass
class Output:
    hidden: Tensor
    extra: Any = None


class Anything:
    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


WRAPS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda h: (h, None),
    "named tuple": lambda h: Pair(h, None),
    "dataclass": lambda h: Output(h),
    "mapping": lambda h: {"extra": None, "hidden": h},
    "nested": lambda h: [{"deep": (Output(h),)}],
}


class Block(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap, self.inner = nn.Linear(6, 6), wrap, None

    def forward(self, x: Tensor) -> Any:
        self.inner = x + torch.relu(self.linear(x))
        return self.wrap(self.inner)


class Stack(nn.Module):
    """Blocks whose outputs are wrapped; it looks into them itself."""

    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(wrap) for _ in range(3))
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> None:
        for block in self.blocks:
            block(x)
            x = block.inner
        self.head(x)


@pytest.mark.parametrize("kind", WRAPS)
def test_wrapped_outputs_are_read(kind: str) -> None:
    data = DataLoader(points(90, 6), 30)
    plain = measured(Runs(Stack(lambda h: h)), data)
    assert measured(Runs(Stack(WRAPS[kind])), data).history == plain.history


def test_an_output_that_cannot_be_looked_into_is_named() -> None:
    with pytest.warns(UserWarning, match="they hand on no tensor of numbers but a Anything: net.b"):
        probe = measured(Runs(Stack(Anything)), DataLoader(points(90, 6), 30))
    assert probe.history["layer"] == ["input", "net.head"]
    assert "net.blocks.0, net.blocks.1, net.blocks.2" in probe._summary()


def test_no_output_at_all_is_named() -> None:
    class Silent(nn.Linear):
        def forward(self, x: Tensor) -> None:  # type: ignore[override] # as somebody wrote it
            super().forward(x)

    def call(net: Any, batch: Any) -> None:
        for part in net:
            part(batch[0])

    net = nn.ModuleList([nn.Linear(6, 6), Silent(6, 6)])
    with pytest.warns(UserWarning, match="hand on no tensor of numbers but nothing: net.1"):
        measured(Runs(net, call), DataLoader(points(90, 6), 30))
    with pytest.warns(UserWarning, match="every watched layer was left out, as they hand on no"):
        measured(Runs(net[1:], call), DataLoader(points(90, 6), 30))


def test_a_layer_that_does_not_run_is_named_at_the_end() -> None:
    def call(net: Any, batch: Any) -> None:
        net[0](batch[0])

    net = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
    probe = measured(Runs(net, call), DataLoader(points(90, 6), 30))
    assert "Left out, as the validation step does not run them: net.1." in probe._summary()


def test_complex_features_are_their_real_and_imaginary_parts() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x @ self.weight)

    data = points(90, 6)
    net = nn.ModuleDict({"wave": Fourier()})
    probe = measured(Runs(net, lambda net, batch: net["wave"](batch[0])), DataLoader(data, 30))
    x, y = data.tensors
    wave = net["wave"](x).detach()
    parts = torch.cat([wave.real, wave.imag], 1).double().numpy()
    expected = reference.fisher(parts, y.numpy())
    assert rows_of(probe, "fisher")["net.wave"] == pytest.approx(expected, rel=1e-5)


# Packed sequences


class Sentences(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], *, is_sorted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([kind(5, 8, batch_first=True), kind(8, 8, batch_first=True)])
        self.head, self.is_sorted = nn.Linear(8, CLASSES), is_sorted

    def forward(self, x: Tensor, lengths: Tensor) -> list[Any]:
        packed: Any = pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=self.is_sorted
        )
        outputs = []
        for layer in self.layers:
            packed, state = layer(packed)
            outputs.append(packed)
        self.head((state[0] if isinstance(state, tuple) else state)[-1])
        return outputs


def sentences(count: int) -> TensorDataset:
    x, y = points(count, 7, 5).tensors
    lengths = torch.randint(1, 8, (count,), generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, y, lengths)


def call(net: nn.Module, batch: Any) -> None:
    net(batch[0], batch[2])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("max_samples", [2000, None])
def test_a_packed_sequence_is_the_mean_over_its_own_steps(
    kind: type[nn.RNNBase], max_samples: int | None
) -> None:
    data = sentences(96)
    net = Sentences(kind)
    probe = measured(Runs(net, call), DataLoader(data, 16), labels=1, max_samples=max_samples)
    assert set(probe.history["num_samples"]) == {96}
    x, y, lengths = data.tensors
    with torch.no_grad():
        alone = [
            net.layers[0](row[:length])[0].mean(0) for row, length in zip(x, lengths, strict=True)
        ]
    expected = reference.separation(torch.stack(alone).double().numpy(), y.numpy())
    assert rows_of(probe, "separation")["net.layers.0"] == pytest.approx(expected, rel=1e-4)
    assert dict(zip(probe.history["layer"], probe.history["pool"], strict=True)) == {
        "input": "flatten", "net.layers.0": "mean", "net.layers.1": "mean", "net.head": "none",
    }  # fmt: skip


def test_steps_of_a_packed_sequence_have_the_labels_of_their_places() -> None:
    x, _, lengths = sentences(64).tensors
    y = (x[..., 0] > 0).long()
    y[torch.arange(7) >= lengths[:, None]] = -100
    net = Sentences(nn.GRU)
    data = DataLoader(TensorDataset(x, y, lengths), 16)
    probe = measured(Runs(net, call), data, labels=1, max_samples=None)
    with torch.no_grad():
        steps = [net.layers[0](row[:length])[0] for row, length in zip(x, lengths, strict=True)]
    labels = y[y >= 0]
    expected = reference.separation(torch.cat(steps).double().numpy(), labels.numpy())
    assert rows_of(probe, "separation")["net.layers.0"] == pytest.approx(expected, rel=1e-4)


class Sorting(Sentences):
    """Sorts its sentences by their lengths, and says so to nobody."""

    def forward(self, x: Tensor, lengths: Tensor) -> list[Any]:
        order = lengths.argsort(descending=True, stable=True)
        return super().forward(x[order], lengths[order])


def test_sentences_that_were_sorted_on_the_way_are_not_taken_for_others() -> None:
    data = sentences(64)
    reason = "every watched layer was left out, as samples were sorted by length on the way "
    with pytest.warns(UserWarning, match=reason):
        measured(Runs(Sorting(nn.GRU, is_sorted=True), call), DataLoader(data, 16), labels=1)
    x, y, lengths = data.tensors
    order = lengths.argsort(descending=True, stable=True)
    batch = [(x[order], y[order], lengths[order])]  # sorted where the batch is made, labels and all
    found = measured(Runs(Sorting(nn.GRU, is_sorted=True), call), DataLoader(batch, None), labels=1)
    expected = measured(Runs(Sentences(nn.GRU), call), DataLoader(data, 64), labels=1)
    assert rows_of(found, "separation")["net.layers.0"] == pytest.approx(
        rows_of(expected, "separation")["net.layers.0"], rel=1e-4
    )


def test_other_pools_of_packed_sequences() -> None:
    data = sentences(64)
    first = measured(Runs(Sentences(nn.GRU), call), DataLoader(data, 16), labels=1,
                     pool="class_token")  # fmt: skip
    with torch.no_grad():
        outputs = Sentences(nn.GRU).layers[0](data.tensors[0][:, :1])[0][:, 0]
    expected = reference.fisher(outputs.double().numpy(), data.tensors[1].numpy())
    assert rows_of(first, "fisher")["net.layers.0"] == pytest.approx(expected, rel=1e-4)

    def last(output: Tensor) -> Tensor:
        return output[:, -1]

    assert "net.layers.0" in measured(
        Runs(Sentences(nn.GRU), call), DataLoader(data, 64), labels=1, pool=last
    ).history["layer"]  # fmt: skip


# Axes


class Tagger(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.middle = nn.Embedding(words, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, words)

    def forward(self, x: Tensor) -> None:
        self.head(torch.relu(self.middle(self.embed(x))))


@pytest.mark.parametrize("words", [7, 8, 9, 16])
def test_an_embedding_tells_its_words_apart_whatever_the_length(words: int) -> None:
    x = torch.randint(words, (200, 8), generator=torch.Generator().manual_seed(0))
    probe = measured(Runs(Tagger(words)), DataLoader(TensorDataset(x, x), 50), labels=1)
    assert set(probe.history["linear_probe"]) == {1.0}
    assert probe.history["num_features"][0] == 16


class Mixed(nn.Module):
    """Its parts say both, as those of a ConvNeXt block do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread, self.mix = nn.Conv1d(6, 6, 3, padding=1), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.mix(self.spread(x).transpose(1, 2)).transpose(1, 2)
        return x + mixed


def in_turn(net: Any, batch: Any) -> None:
    x = batch[0]
    for block in net:
        x = block(x)


def test_an_axis_that_cannot_be_known_is_named_or_told_by_another_batch() -> None:
    net = nn.ModuleList([Mixed(), Mixed()])
    data = DataLoader(points(60, 6, 6), 20)
    with pytest.warns(UserWarning, match="was left out, as channels and positions are as many "):
        measured(Runs(net, in_turn), data)
    with pytest.warns(UserWarning, match="as channels and positions are as many .*: net.0, net.1"):
        measured(Runs(nn.ModuleList([*net, nn.Flatten(), nn.Linear(36, 3)]), in_turn), data)
    short, square = points(40, 6, 5).tensors, points(20, 6, 6).tensors
    batches = [square, (short[0][:20], short[1][:20]), (short[0][20:], short[1][20:])]
    probe = measured(Runs(net, in_turn), DataLoader(batches, batch_size=None))
    with torch.no_grad():
        rows = net[0](short[0]).mean(2).double().numpy()
    assert probe.history["layer"][-2:] == ["net.0", "net.1"]
    expected = reference.separation(rows, short[1].numpy())
    assert rows_of(probe, "separation")["net.0"] == pytest.approx(expected, rel=1e-4)
