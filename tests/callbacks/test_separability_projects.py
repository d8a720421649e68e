"""The separability probe in projects that are not written for it."""

from __future__ import annotations

import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_depth.callbacks import LayerSeparabilityProbe
from lightning_depth.callbacks._probe.collector import Collector
from lightning_depth.errors import MisuseError
from tests.callbacks.test_separability import Net, loader, mlp, rows_of, trainer, validate
from tests.metrics import reference

CLASSES = 3


def points(count: int, *shape: int, seed: int = 0, classes: int = CLASSES) -> TensorDataset:
    """Samples of some classes, each about a mean of its own."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    means = torch.randn(classes, *shape, generator=generator)
    return TensorDataset(means[y] + torch.randn(count, *shape, generator=generator), y)


class Runs(pl.LightningModule):
    """Validates a network on what a function makes of a batch."""

    def __init__(self, net: nn.Module, call: Any = None) -> None:
        super().__init__()
        self.net = net
        self.call = call or (lambda net, batch: net(batch[0]))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.call(self.net, batch)


def measured(module: pl.LightningModule, data: Any, **options: Any) -> LayerSeparabilityProbe:
    probe = LayerSeparabilityProbe(**options)
    trainer(probe).validate(module, data, verbose=False)
    return probe


# The state of the process


def test_two_probes_leave_compilation_as_it_was() -> None:
    before = torch._dynamo.eval_frame._stance.stance
    probes = [LayerSeparabilityProbe(prefix=prefix) for prefix in ("a", "b", "c")]
    run = pl.Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False,
                     callbacks=list(probes))  # fmt: skip
    run.fit(Net(), loader(), loader())
    assert torch._dynamo.eval_frame._stance.stance == before
    assert probes[0].history["separation"] == probes[2].history["separation"]


def test_hooks_that_cannot_be_hung_leave_compilation_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch._dynamo.eval_frame._stance.stance
    during: list[str] = []

    def refuse(self: Any) -> None:
        raise RuntimeError("no hooks here")

    def note(net: nn.Module, batch: Any) -> None:
        during.append(torch._dynamo.eval_frame._stance.stance)
        net(batch[0])

    module, data = Runs(nn.Linear(6, 3), note), DataLoader(points(48, 6), 48)
    with monkeypatch.context() as patch:
        patch.setattr(Collector, "open", refuse)
        with pytest.raises(RuntimeError, match="no hooks here"):
            measured(module, data)
    assert torch._dynamo.eval_frame._stance.stance == before
    measured(module, data)  # the next one sets it and restores it
    assert during == ["force_eager"]
    assert torch._dynamo.eval_frame._stance.stance == before


# Which output is a layer's


def test_a_shared_activation_gives_every_layer_its_own_features() -> None:
    torch.manual_seed(0)
    shared, own = nn.ReLU(), mlp(3, 16)
    flat = nn.Sequential(*(shared if isinstance(part, nn.ReLU) else part for part in own))
    nested = nn.Sequential(*(nn.Sequential(own[place], shared) for place in (0, 2, 4)), own[6])
    expected = list(rows_of(validate(Net(own)), "separation").values())
    for net in (flat, nested):
        found = rows_of(validate(Net(net), granularity="leaf"), "separation")
        assert list(found.values()) == pytest.approx(expected, rel=1e-9)


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            nn.LSTM(5 if place == 0 else 8, 8, batch_first=batch_first) for place in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)[0]
        return x


class Encoder(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.encoder(x))
        return output


def time_first(net: nn.Module, batch: Any) -> None:
    net(batch[0].transpose(0, 1))


@pytest.mark.filterwarnings("ignore:LayerSeparabilityProbe. left out:UserWarning")  # the head
@pytest.mark.parametrize(("kind", "width"), [(Recurrent, 5), (Encoder, 8)])
def test_as_many_samples_as_time_steps(kind: type[Any], width: int) -> None:
    data = DataLoader(points(48, 16, width), 16)
    expected = rows_of(measured(Runs(kind(batch_first=True)), data), "fisher")
    found = rows_of(measured(Runs(kind(batch_first=False), time_first), data), "fisher")
    for name in [name for name in expected if "layers" in name]:
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name


class Embedded(nn.Module):
    """Puts time first itself, before a layer that does not know it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.recurrent = nn.Linear(5, 8), nn.LSTM(8, 8)

    def forward(self, x: Tensor) -> None:
        self.recurrent(self.embed(x.transpose(0, 1)))


def test_an_order_of_axes_that_cannot_be_known_is_said() -> None:
    data = points(48, 16, 5)
    with pytest.warns(UserWarning, match=r"left out, as samples and time .*: net\.embed\.$"):
        probe = measured(Runs(Embedded()), DataLoader(data, 16))
    assert probe.history["layer"] == ["input", "net.recurrent"]
    probe = measured(Runs(Embedded()), DataLoader(data, 12))
    assert probe.history["layer"] == ["input", "net.embed", "net.recurrent"]


class Padded(Dataset[Any]):
    """Sequences of several lengths with their masks."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor, int]:
        generator = torch.Generator().manual_seed(place)
        mask = torch.arange(9) >= 4 + place % 6
        return torch.randn(9, 8, generator=generator) + place % CLASSES, mask, place % CLASSES


def masked(net: nn.Module, batch: Any) -> None:
    net(batch[0], src_key_padding_mask=batch[1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_packs_its_sequences() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 3, enable_nested_tensor=True).eval()
    probe = measured(Runs(net, masked), DataLoader(Padded(), 16))
    assert probe.history["layer"][1:] == ["net.layers.0", "net.layers.1", "net.layers.2"]
    assert set(probe.history["num_samples"]) == {48}
    assert set(probe.history["pool"][1:]) == {"mean"}
    seen: list[Tensor] = []
    with torch.inference_mode():
        hook = net.layers[1].register_forward_hook(lambda *args: seen.append(args[2]))
        for batch in DataLoader(Padded(), 16):
            net(batch[0], src_key_padding_mask=batch[1])
        hook.remove()
    assert all(output.is_nested for output in seen)
    rows = torch.stack([tokens.mean(0) for output in seen for tokens in output.unbind()])
    labels = torch.arange(48) % CLASSES
    expected = reference.separation(rows.double().numpy(), labels.numpy())
    assert rows_of(probe, "separation")["net.layers.1"] == pytest.approx(expected, rel=1e-5)


class Empty(nn.Linear):
    """Hands on nothing at all."""

    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        return x[:, :0]


class Thin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 6), Empty(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.second(x)
        output: Tensor = self.third(self.first(x))
        return output


class Sparse(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to_sparse()


def test_outputs_that_are_empty_or_sparse_do_not_end_the_run() -> None:
    data = DataLoader(points(48, 6), 16)
    with pytest.warns(UserWarning, match="left out, as they hand on an empty tensor: net.second"):
        probe = measured(Runs(Thin()), data)
    assert probe.history["layer"] == ["input", "net.first", "net.third"]
    net = Sparse(6, 6)
    found = rows_of(measured(Runs(nn.Sequential(net)), data), "separation")
    plain = nn.Linear(6, 6)
    plain.load_state_dict(net.state_dict())
    expected = rows_of(measured(Runs(nn.Sequential(plain)), data), "separation")
    assert found == pytest.approx(expected)


class Sometimes(nn.Module):
    """Runs its second layer in one batch only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.batch, self.count = batch, 0

    def forward(self, x: Tensor) -> None:
        if self.count == self.batch:
            self.second(x)
        self.first(x)
        self.count += 1


@pytest.mark.parametrize("max_samples", [8, None], ids=["sample", "streaming"])
@pytest.mark.parametrize("batch", [0, 1197])
def test_a_layer_that_runs_in_one_batch_only(max_samples: int | None, batch: int) -> None:
    data = DataLoader(points(1200, 6), 1)
    probe = measured(Runs(Sometimes(batch)), data, max_samples=max_samples)
    assert "net.first" in probe.history["layer"]


def test_more_classes_than_samples_and_a_layer_of_the_first_batch_only() -> None:
    data = DataLoader(points(6000, 6, classes=5000), 64)
    with pytest.warns(UserWarning, match="one of each of 5000 classes .* to 10000 or more"):
        measured(Runs(Sometimes(0)), data, max_samples=100)


# What is said


def test_a_pair_of_a_label_that_never_comes_has_no_curve() -> None:
    probe = validate(Net(), class_pairs=[(2, 77), (77, 0), (4, 9)])
    for column in ("fisher_2_77", "fisher_77_0"):
        assert all(value != value for value in probe.history[column])
    assert all(value > 0 for value in probe.history["fisher_4_9"])


def test_a_loader_that_is_not_there_is_named() -> None:
    with pytest.warns(UserWarning, match="no validation loader 3, .* their numbers are 0 to 1"):
        validate(Net(), [loader(), loader()], dataloader_idx=3)


class Cut(nn.Linear):
    """A layer that hands on another number of features each time."""

    count = 1

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)[:, : self.count]


def test_layers_whose_width_changes_are_named() -> None:
    data = DataLoader(points(48, 6), 16)
    net = nn.ModuleDict({"cut": Cut(6, 8), "head": nn.Linear(6, 3)})

    def both(net: Any, batch: Any) -> None:
        net["cut"](batch[0])
        net["head"](batch[0])

    with pytest.warns(UserWarning, match="width changes from batch to batch: net.cut"):
        probe = measured(Runs(net, both), data)
    assert probe.history["layer"] == ["input", "net.head"]
    with pytest.warns(UserWarning, match="every watched layer was left out, as their width"):
        measured(Runs(nn.Sequential(Cut(6, 8))), data)


def test_one_sample_of_a_class_beside_the_sums_is_said() -> None:
    data = DataLoader(points(2400, 6, classes=1200), 64)
    with pytest.warns(UserWarning, match="not measured: linear_probe, as the sample kept beside"):
        probe = measured(Runs(nn.Sequential(nn.Linear(6, 6))), data, max_samples=None)
    assert all(value > 0 for value in probe.history["separation"])


def test_samples_that_did_not_travel_are_said_to_be_gone() -> None:
    probe = LayerSeparabilityProbe()
    trainer(probe, max_epochs=1000).validate(Net(), loader(), verbose=False)
    travelled = pickle.loads(pickle.dumps(probe))
    with pytest.raises(MisuseError, match=r"gone, .* call `trainer\.validate` with this probe"):
        travelled.plot_classes()
    probe.plot_classes()
    pickle.loads(pickle.dumps(probe)).plot_classes()  # what was drawn travels


def test_equal_values_stay() -> None:
    data = TensorDataset(torch.eye(4).repeat(20, 1), torch.arange(80) % 4)
    net = nn.Sequential(nn.Linear(4, 4))
    nn.init.eye_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    noise = torch.randn(80, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(data.tensors[0] + 1e-3 * noise, data.tensors[1])
    assert "accuracy stays at 1." in measured(Runs(net), DataLoader(data, 16))._summary()
