"""Projects as they are: what a reviewer broke, each by the shortest script."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_depth.callbacks import (
    ActivationMonitor,
    GradientFlowMonitor,
    measure_activations,
)
from lightning_depth.callbacks._history import History
from tests.callbacks.toy import Batch, Toy, fit, make_net, sgd


class Lookahead(torch.optim.Optimizer):
    """Wraps an optimizer, and never calls the constructor of its base."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, {}

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)


def test_an_optimizer_without_hooks_is_measured_without_updates() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Toy(optimizer=lambda parameters: Lookahead(sgd(parameters))), monitor)
    assert monitor.totals["step"] == [0, 1, 2, 3]
    assert all(math.isnan(update) for update in monitor.totals["update_to_weight"])


class Fast(Toy):
    """A step changes the weights by a large share of themselves."""

    def __init__(self) -> None:
        super().__init__(make_net(), lambda p: torch.optim.Adam(p, lr=0.2), batches=12)


class Reader(pl.Callback):
    def __init__(self, monitor: GradientFlowMonitor) -> None:
        self.monitor = monitor

    def on_train_batch_end(self, *args: Any) -> None:
        self.monitor.state_dict()
        assert self.monitor.history is not None


def test_reading_does_not_change_the_verdict() -> None:
    alone, read = (GradientFlowMonitor(every_n_steps=1, on_finding="log") for _ in range(2))
    fit(Fast(), alone)
    fit(Fast(), read, Reader(read))
    assert [finding.kind.value for finding in alone.findings] == ["EXPLODING"]
    assert read.findings == alone.findings
    assert str(read.totals) == str(alone.totals)


class Rarely(Toy):
    """Manual optimization that steps at every fifth batch, counted from the first."""

    def __init__(self) -> None:
        super().__init__(batches=60)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        if batch_idx % 5 == 0:
            optimizer.step()
            optimizer.zero_grad()


def test_an_optimizer_that_never_meets_the_pace_is_measured_when_it_is_overdue() -> None:
    monitor = GradientFlowMonitor(every_n_steps=10, patience=1)
    fit(Rarely(), monitor)
    steps = monitor.totals["step"]
    assert len(steps) >= 5
    assert max(b - a for a, b in pairwise(steps)) <= 12


class Turns(Toy):
    """Two heads, of which every step uses one."""

    def __init__(self) -> None:
        super().__init__(nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]), batches=40)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        heads: Any = self.net
        return F.cross_entropy(heads[batch_idx % 2](batch[0]), batch[1])


@pytest.mark.parametrize("pace", [1, 10])
def test_branches_that_take_turns_are_not_cut_off(pace: int) -> None:
    monitor = GradientFlowMonitor(every_n_steps=pace, granularity="leaf", on_finding="log")
    fit(Turns(), monitor)
    assert monitor.findings == []


def test_nothing_is_said_of_how_one_sample_differs_from_itself() -> None:
    net = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(4)))
    seen = measure_activations(net, lambda: net(torch.randn(1, 16)))
    assert all(math.isnan(row["effective_rank"]) for row in seen.layers)
    assert not [found for found in seen.findings if found.kind.value == "COLLAPSED"]


class Functional(nn.Module):
    """A convolution whose ReLU is a function, read through something, then a linear layer."""

    def __init__(self, read: nn.Module, features: int) -> None:
        super().__init__()
        self.conv, self.read, self.fc = nn.Conv2d(1, 8, 3), read, nn.Linear(features, 4)
        with torch.no_grad():
            self.conv.bias[0] = -50.0  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.read(F.relu(self.conv(x))).flatten(1))


@pytest.mark.parametrize(
    ("read", "features"),
    [(nn.Identity(), 8 * 36), (nn.MaxPool2d(2), 8 * 9), (nn.AdaptiveAvgPool2d(1), 8)],
    ids=["flattened", "pooled", "averaged"],
)
def test_a_functional_relu_has_a_unit_a_channel(read: nn.Module, features: int) -> None:
    net = Functional(read, features)
    x = torch.randn(600, 1, 8, 8)
    seen = measure_activations(net, lambda: net(x), granularity="leaf")
    alive = F.relu(net.conv(x)).amax((0, 2, 3)) > 0
    assert seen.layers[0]["dead"] == (~alive).float().mean().item() >= 1 / 8


class Gated(nn.Module):
    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.scale = nn.Parameter(torch.full((16,), -1.0)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears:
            x = linear(x)
            x = torch.sigmoid(8 * x) * x if self.scale is None else F.relu(x) * self.scale
        return x


@pytest.mark.parametrize("scaled", [False, True], ids=["swish", "negative scale"])
def test_a_gate_and_a_learned_scale_are_not_the_activation(scaled: bool) -> None:
    net = Gated(scaled)
    seen = measure_activations(net, lambda: net(10 * torch.randn(600, 16)), granularity="leaf")
    assert not {found.kind.value for found in seen.findings} & {"SATURATED", "DEAD"}


class Sharing(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(16, 16), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.linear(x))


def test_a_shared_activation_belongs_to_the_block_that_runs() -> None:
    shared = nn.ReLU()
    blocks = [Sharing(shared) for _ in range(4)]
    with torch.no_grad():
        blocks[2].linear.bias.fill_(-50.0)
    net = nn.Sequential(*blocks, nn.Linear(16, 3))
    seen = measure_activations(net, lambda: net(torch.randn(600, 16)))
    dead = [row["dead"] for row in seen.layers]
    assert dead[2] == 1.0
    assert max(dead[0], dead[1]) < 0.5


class Broken(Toy):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]).float(), batch[1])
        return loss * (math.nan if batch_idx > 1 else 1.0)


def test_a_scaler_that_is_switched_off_skips_nothing() -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)  # type: ignore[arg-type]
    monitor = GradientFlowMonitor(every_n_steps=1, on_finding="log")
    fit(Broken(batches=8), monitor, plugins=[plugin])
    assert "NON_FINITE" in [finding.kind.value for finding in monitor.findings]
    assert not any(monitor.totals["skipped"])


def test_thinning_keeps_every_optimizer() -> None:
    history = History(capacity=100)
    for step in range(1000):
        history.append(step=step, optimizer=step % 2)
    table = history.table()
    kept = {place: table["optimizer"][:60].count(place) for place in (0, 1)}
    assert abs(kept[0] - kept[1]) <= 1
    assert len(table["step"]) <= 100


class Finetuned(Toy):
    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 3))
        self.backbone = nn.Sequential(nn.Linear(6, 6), nn.ReLU())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen = F.cross_entropy(self.net(self.backbone(batch[0])), batch[1])
        return self.seen

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.norms.append(math.hypot(*(p.grad.norm().item() for p in parameters)))

    def configure_optimizers(self) -> Any:
        self.norms: list[float] = []
        return sgd([p for p in self.parameters() if p.requires_grad])


@pytest.mark.filterwarnings("ignore")
def test_parameters_that_are_unfrozen_later_are_measured() -> None:
    module, monitor = Finetuned(), GradientFlowMonitor(every_n_steps=1)
    unfreeze = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    fit(module, unfreeze, monitor, max_epochs=2)
    assert monitor.totals["norm"] == pytest.approx(module.norms, rel=1e-5)


class Halting(Toy):
    """No loss at the third batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        return None if batch_idx == 2 else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore")
def test_a_step_without_a_loss_does_not_lose_the_update_before_it() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1)
    fit(Halting(batches=6), monitor)
    assert all(math.isfinite(update) for update in monitor.totals["update_to_weight"])


def test_a_dead_unit_needs_enough_samples_of_its_own_branch() -> None:
    class Alternating(Toy):
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            nets: Any = self.net
            return F.cross_entropy(nets[batch_idx % 2](batch[0]), batch[1])

    branches = nn.ModuleList(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2)
    )
    monitor = ActivationMonitor(every_n_steps=1, min_samples=32, granularity="leaf")
    fit(Alternating(branches, batches=10), monitor)
    seen = zip(monitor.history["step"], monitor.history["dead"], strict=True)
    known = sorted({step for step, dead in seen if not math.isnan(dead)})
    assert known == [6, 7, 8, 9]  # four batches of eight samples of either branch


class Adversarial(Toy):
    """Two networks that run and are differentiated one after the other."""

    def __init__(self) -> None:
        nets = [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)) for _ in range(2)]
        super().__init__(nn.ModuleList(nets))
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        nets: Any = self.net
        return [sgd(net.parameters()) for net in nets]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        nets: Any = self.net
        optimizers: Any = self.optimizers()
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(net(batch[0]), batch[1]))
            optimizer.step()


def test_manual_optimization_measures_what_runs_after_a_backward_pass() -> None:
    monitor = ActivationMonitor(every_n_steps=1, granularity="leaf")
    module = Adversarial()
    fit(module, monitor)
    assert {name.split(".")[1] for name in monitor.history["layer"]} == {"0", "1"}
    assert monitor.history["step"].count(0) == 4
    assert not any(part._forward_hooks for part in module.modules())


def test_every_optimizer_has_the_gradients_of_its_outputs() -> None:
    monitor = GradientFlowMonitor(every_n_steps=1, granularity="leaf", signal="activations")
    module = Adversarial()
    fit(module, monitor)
    assert {*monitor.history["optimizer"]} == {"net.0", "net.1"}
    assert all(math.isfinite(size) for size in monitor.history["output_grad_rms"])
    assert not any(part._forward_hooks for part in module.modules())
