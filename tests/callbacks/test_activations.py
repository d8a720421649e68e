from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_depth.callbacks import (
    ActivationMonitor,
    FindingWarning,
    measure_activations,
    measure_gradients,
)
from lightning_depth.errors import ConfigurationError, MisuseError
from tests.callbacks.toy import Batch, Block, Toy, fit, make_batches, make_net, rows


def monitor(**options: Any) -> ActivationMonitor:
    return ActivationMonitor(**{"every_n_steps": 1, "min_samples": 8, **options})


class Functional(nn.Module):
    """Activations written as functions, as many projects do."""

    def __init__(self, activation: Any = torch.relu) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(F.dropout(x, 0.0))


def silence(layer: nn.Linear, units: int) -> None:
    with torch.no_grad():
        layer.bias[:units] = -1e3
        layer.bias[units:] = 9.0  # the others live


def test_dead_units_are_counted_by_layer() -> None:
    net = make_net(activation=nn.ReLU)
    silence(net[2].linear, 4)  # type: ignore[arg-type,union-attr]
    seen = monitor(on_finding="log")
    fit(Toy(net), seen)
    assert rows(seen.history, "dead")[-1]["net.2"] == pytest.approx(4 / 6)


def test_a_net_with_half_of_its_activations_zero_has_no_dead_unit() -> None:
    class Mirror(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block(6, nn.ReLU()) for _ in range(3))
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([x, -x])  # what one sample silences its mirror image excites
            for block in self.blocks:
                block.linear.weight.data = torch.eye(6)
                block.linear.bias.data = torch.zeros(6)
                x = block(x) - block(-x)
            return self.head(x[: len(x) // 2])

    seen = monitor()
    fit(Toy(Mirror()), seen)
    assert set(seen.history["dead"]) - {math.nan} >= {0.0}
    assert all(value == 0.0 or math.isnan(value) for value in seen.history["dead"])


def test_a_unit_is_not_judged_on_fewer_samples_than_asked_for() -> None:
    seen = monitor(min_samples=20)
    fit(Toy(make_net(activation=nn.ReLU)), seen)
    judged = [not math.isnan(row["net.1"]) for row in rows(seen.history, "dead")]
    assert judged == [False, False, True, True]


def test_functions_are_found_without_modules() -> None:
    net = Functional()
    silence(net.layers[1], 3)  # type: ignore[arg-type]
    seen = monitor(on_finding="log")
    fit(Toy(net), seen)
    dead = rows(seen.history, "dead")[-1]
    assert dead["net.layers.1"] == pytest.approx(3 / 6)
    assert math.isnan(dead["net.head"])


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid], ids=["tanh", "sigmoid"])
def test_saturation_of_functions_is_found(activation: Any) -> None:
    net = Functional(activation)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(200)
    seen = monitor()
    with pytest.warns(FindingWarning, match="SATURATED"):
        fit(Toy(net), seen)
    assert seen.findings[0].kind.value == "SATURATED"


def test_relu_and_linear_layers_do_not_saturate() -> None:
    seen = monitor(on_finding="log")
    fit(Toy(make_net(activation=nn.ReLU)), seen)
    assert all(math.isnan(value) for value in seen.history["saturated"])


def test_rms_and_rank_equal_a_pass_by_hand() -> None:
    from lightning_depth.functional.rank import effective_rank

    ((x, _),) = make_batches(1)
    wanted_rms, wanted_rank = [], []
    for part in make_net():
        x = part(x)
        wanted_rms.append(x.square().mean().sqrt().item())
        wanted_rank.append(effective_rank(x.detach()).item())
    seen = monitor()
    fit(Toy(batches=1), seen)
    assert seen.history["rms"] == pytest.approx(wanted_rms, rel=1e-5)
    assert seen.history["effective_rank"] == pytest.approx(wanted_rank, rel=5e-3)


def test_a_constant_layer_is_collapsed() -> None:
    net = nn.Sequential(*(Block(16, nn.Tanh()) for _ in range(4)), nn.Linear(16, 3))
    with torch.no_grad():
        net[1].linear.weight.zero_()  # type: ignore[union-attr,operator]
    net.requires_grad_(False)
    net[-1].requires_grad_(True)

    class Wide(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Any:
            return super().training_step((batch[0].repeat(1, 3)[:, :16], batch[1]), batch_idx)

    seen = monitor(on_finding="log")
    fit(Wide(net), seen)
    assert seen.findings[0].kind.value == "COLLAPSED"
    assert seen.findings[0].layers[0] == "net.1"
    assert seen.findings[0].value < seen.findings[0].threshold


def test_a_layer_that_runs_twice_in_a_step_is_one_layer() -> None:
    class Views(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            first, second = self.net(batch[0]), self.net(-batch[0])
            return F.cross_entropy(first + second, batch[1])

    net = make_net(activation=nn.ReLU)
    seen = monitor()
    fit(Views(net), seen)
    assert seen.history["layer"] == [f"net.{place}" for place in range(6)] * 4


def test_recomputed_activations_are_not_counted() -> None:
    class Checkpointed(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            hidden = checkpoint(self.net[:-1], batch[0], use_reentrant=False)  # type: ignore[index]
            return F.cross_entropy(self.net[-1](hidden), batch[1])  # type: ignore[index,operator]

    plain, again = monitor(), monitor()
    fit(Toy(make_net(activation=nn.ReLU)), plain)
    fit(Checkpointed(make_net(activation=nn.ReLU)), again)
    assert again.history["rms"] == plain.history["rms"]
    assert rows(again.history, "dead")[-1]["net.2"] == rows(plain.history, "dead")[-1]["net.2"]


def test_images_have_their_units_along_the_channels() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    with torch.no_grad():
        net[0].bias[0] = -1e3  # type: ignore[index,union-attr]
    seen = measure_activations(net, lambda: net(torch.randn(4, 1, 8, 8)))
    assert next(row["dead"] for row in seen.layers) == 0.25


def test_compiled_models_are_told_of() -> None:
    module = Toy()
    module.net.compile(backend="eager")
    with pytest.warns(UserWarning, match=r"^ActivationMonitor measures nothing in this run"):
        fit(module, monitor())


def test_scalars_are_the_worst_of_the_layers() -> None:
    seen = monitor(log_layers=True)
    trainer = fit(Toy(make_net(activation=nn.ReLU)), seen)
    worst = max(value for value in seen.history["dead"][-6:] if not math.isnan(value))
    assert trainer.callback_metrics["activations/dead"] == pytest.approx(worst)
    assert "activations/dead/net.1" in trainer.callback_metrics


def labels(axes: Any) -> list[str]:
    """What the maps of a figure say that they show."""
    return [panel.get_title() for panel in axes]


def test_plot_shows_size_dead_and_saturated_units_and_rank_by_depth_and_step() -> None:
    net = nn.Sequential(
        Block(6, nn.ReLU()), Block(6, nn.Tanh()), Block(6, nn.ReLU()), nn.Linear(6, 3)
    )
    seen = monitor(on_finding="log")
    fit(Toy(net), seen)
    figure, axes = seen.plot()
    assert labels(axes) == [
        "RMS of the output",
        "dead units (share)",
        "saturated outputs (share)",
        "effective rank",
    ]
    for panel, column in zip(axes, ("rms", "dead", "saturated", "effective_rank"), strict=True):
        shown = panel.collections[0].get_array()
        assert shown.shape == (4, 4)
        wanted = torch.tensor(seen.history[column]).view(4, 4).T
        assert torch.tensor(shown.filled(math.nan)).allclose(wanted.double(), equal_nan=True)
    named = [
        [text.get_text() for text in panel.get_yticklabels() if text.get_visible()]
        for panel in axes
    ]
    assert named[0] == named[2] == ["net.0", "net.1", "net.2", "net.3"]
    figure.savefig("figure.png")


def test_plot_leaves_out_what_no_layer_has() -> None:
    seen = monitor()
    fit(Toy(make_net(activation=nn.Identity)), seen)
    figure, axes = seen.plot()
    assert labels(axes) == ["RMS of the output", "effective rank"]
    assert len(figure.axes) == 4  # each with its color bar


def test_plot_of_a_run_without_measurements_is_empty() -> None:
    seen = monitor()
    fit(Toy(batches=1), seen, limit_train_batches=0)
    _, axes = seen.plot()
    assert len(axes) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("argument", ["every_n_steps", "patience", "min_samples"])
def test_counts_are_checked(argument: str) -> None:
    message = rf"^`{argument}` must be a whole number of at least 1, but got 0\.$"
    with pytest.raises(ConfigurationError, match=message):
        ActivationMonitor(**{argument: 0})  # type: ignore[arg-type]


def test_a_snapshot_needs_a_gradient() -> None:
    with pytest.raises(
        MisuseError, match=r"^No parameter has a gradient: call `backward` on a loss first\.$"
    ):
        measure_gradients(make_net())


def test_a_snapshot_leaves_no_hooks_after_an_error() -> None:
    net = make_net()

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure_activations(net, fail)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


class Alternating(Toy):
    """Units die in the second half of the run."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        if batch_idx == 6:
            silence(self.net[1].linear, 4)  # type: ignore[index,arg-type]
        return super().training_step(batch, batch_idx)


class Keep(pl.Callback):
    """Takes the state of a callback in the middle of a run, and gives it back at a later step."""

    def __init__(self, watched: ActivationMonitor, back_at: int | None = None) -> None:
        self.watched, self.back_at = watched, back_at
        self.state: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if trainer.global_step == 4:
            self.state = copy.deepcopy(self.watched.state_dict())
        if trainer.global_step == self.back_at:
            self.watched.load_state_dict(copy.deepcopy(self.state))
            self.found = self.watched.state_dict()


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one.nan_to_num(-1), other.nan_to_num(-1))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def test_a_state_that_comes_back_in_the_middle_of_a_run_replaces_all() -> None:
    seen = monitor(min_samples=24, on_finding="log")
    keep = Keep(seen, back_at=10)
    fit(Alternating(make_net(activation=nn.ReLU), batches=12), seen, keep)
    assert keep.state["lightning_depth"]["extra"]["measured"] == 4
    assert equal(keep.found, keep.state)
    assert seen.history["step"][::6] == [0, 1, 2, 3, 10, 11]


def test_scalars_after_a_restore_are_not_those_of_before() -> None:
    seen = monitor(on_finding="log")
    fit(Toy(make_net(activation=nn.ReLU)), seen, max_epochs=1)
    state = copy.deepcopy(seen.state_dict())
    other = monitor(on_finding="log")
    other.load_state_dict(state)
    other._latest = list(seen._latest)
    other.load_state_dict(state)
    assert other._scalars() == {}


@pytest.mark.parametrize("again", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_measures_as_the_callback_does(again: Any) -> None:
    first = monitor(min_samples=24, on_finding="log")
    fit(Alternating(make_net(activation=nn.ReLU), batches=12), first)
    copied = again(first)
    assert copied.history == first.history or equal(copied.state_dict(), first.state_dict())
    fit(Alternating(make_net(activation=nn.ReLU), batches=12), copied)
    assert equal(copied.state_dict(), first.state_dict())


def test_a_copy_made_in_the_middle_of_a_run_is_whole() -> None:
    seen = monitor(on_finding="log")

    class Copy(pl.Callback):
        def on_before_backward(self, *args: Any) -> None:
            self.copied = copy.deepcopy(seen)

    copier = Copy()
    fit(Toy(), copier, seen)
    assert equal(pickle.loads(pickle.dumps(copier.copied)).state_dict(), copier.copied.state_dict())
    assert len(set(copier.copied.history["step"])) == 3
